"""A bundle's weights as torch reads them: what the file says of itself has to be true, and to fit the network."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import BundleError
from tests.conftest import refused

torch = pytest.importorskip("torch")
from musicrt.runtime.backends.torch_weights import put_weights  # noqa: E402 - needs torch

BIAS, WEIGHT = [0.5, -2.0], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
VALUES = np.array([*BIAS, *np.ravel(WEIGHT)], np.float32).tobytes()


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write(path: Path, header: dict[str, Any] | str, values: bytes = VALUES, length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + values)
    return path


def linear() -> Any:
    with torch.device("meta"):
        return torch.nn.Linear(3, 2)


TRUE = {"bias": entry("F32", [2], 0, 8), "weight": entry("F32", [2, 3], 8, 32)}
LIES: dict[str, dict[str, Any] | str] = {
    "another name": {"bias": TRUE["bias"], "weights": TRUE["weight"]},
    "another shape": TRUE | {"weight": entry("F32", [3, 2], 8, 32)},
    "whole numbers": TRUE | {"weight": entry("I32", [2, 3], 8, 32)},
    "bfloat16": TRUE | {"weight": entry("BF16", [2, 3], 8, 20), "more": entry("BF16", [6], 20, 32)},
    "bytes": TRUE | {"weight": entry("F8_E4M3", [2, 3], 8, 14), "more": entry("U8", [18], 14, 32)},
    "more than its place": TRUE | {"weight": entry("F64", [2, 3], 8, 32)},
    "beyond the file": TRUE | {"weight": entry("F32", [2, 3], 16, 40)},
    "backwards": TRUE | {"weight": entry("F32", [2, 3], 32, 8)},
    "one in the other": TRUE | {"more": entry("F32", [2], 8, 16)},
    "a hole": TRUE | {"bias": entry("F32", [1], 0, 4)},
    "huge": TRUE | {"more": entry("F32", [1 << 62, 8], 32, 32)},
    "a shape that torch can't have": TRUE | {"more": entry("F32", [0, 1 << 63], 32, 32)},
    "less than none": TRUE | {"more": entry("F32", [0, -1], 32, 32)},
    "a type with ends of lines": TRUE | {"more": entry("F32\n\x1b[2J", [0], 32, 32)},
    "a name that comes twice": json.dumps(TRUE)[:-1] + ', "weight": ' + json.dumps(entry("I32", [2, 3], 8, 32)) + "}",
}


def test_what_is_true_is_read(tmp_path: Path) -> None:
    network = linear()
    put_weights(network, write(tmp_path / "weights", TRUE | {"more": entry("I64", [0], 32, 32)}))
    assert network.bias.tolist() == BIAS
    assert network.weight.tolist() == WEIGHT


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_is_refused(tmp_path: Path, lie: str) -> None:
    path = write(tmp_path / "weights", LIES[lie])
    with refused(BundleError, path, "bundle again"):
        put_weights(linear(), path)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_header_that_is_longer_or_shorter_than_it_says_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "weights", TRUE, length=length)
    with refused(BundleError, path, "can't be read as a safetensors file"):
        put_weights(linear(), path)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path / "none", tmp_path):
        with refused(BundleError, path, "can't be read as a safetensors file"):
            put_weights(linear(), path)
