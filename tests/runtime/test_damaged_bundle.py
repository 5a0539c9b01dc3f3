"""Bundles that are damaged, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.model import Model
from musicrt.runtime.verify import verify_bundle
from tests.conftest import refused
from tests.runtime.test_bundle import WEIGHTS


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("file", [WEIGHTS, "stages/encoder.onnx"])
def test_flipped_byte_is_found_by_hashes_only(copy_bundle: Path, file: str) -> None:
    flip_byte(copy_bundle / file)
    Bundle.open(copy_bundle, check="sizes")
    with refused(BundleError, copy_bundle / file, "SHA-256"):
        Bundle.open(copy_bundle, check="hashes")
    with refused(BundleError, copy_bundle / file, "SHA-256"):
        verify_bundle(copy_bundle)


@pytest.mark.parametrize("file", [WEIGHTS, "stages/decoder.onnx"])
def test_truncated_file_is_refused(copy_bundle: Path, file: str) -> None:
    size = (copy_bundle / file).stat().st_size
    with (copy_bundle / file).open("r+b") as stream:
        stream.truncate(size - 1)
    with refused(BundleError, copy_bundle / file, size - 1, size):
        Bundle.open(copy_bundle)


def test_missing_file_is_refused(copy_bundle: Path) -> None:
    (copy_bundle / WEIGHTS).unlink()
    with refused(BundleError, copy_bundle, WEIGHTS):
        Bundle.open(copy_bundle)


def test_folder_in_place_of_a_file_is_refused(copy_bundle: Path) -> None:
    (copy_bundle / WEIGHTS).unlink()
    (copy_bundle / WEIGHTS).mkdir()
    with refused(BundleError, copy_bundle, WEIGHTS):
        Bundle.open(copy_bundle)


def test_damaged_weights_and_graphs_are_refused_when_opened_unchecked(copy_bundle: Path) -> None:
    """Sizes are right, so only the backends can tell."""
    (copy_bundle / WEIGHTS).write_bytes(b"\xff" * (copy_bundle / WEIGHTS).stat().st_size)
    (copy_bundle / "stages/encoder.onnx").write_bytes(b"\xff" * (copy_bundle / "stages/encoder.onnx").stat().st_size)
    pytest.importorskip("onnxruntime")
    with Model.open(copy_bundle, backend="onnxruntime-cpu") as model, refused(BundleError, "encoder.onnx", "no intact ONNX file"):
        model.session("encoder")
    pytest.importorskip("torch")
    with Model.open(copy_bundle, backend="torch-cpu") as model, refused(BundleError, copy_bundle / WEIGHTS):
        model.session("encoder")


# Wrong places


def test_missing_bundle_is_refused(tmp_path: Path) -> None:
    with refused(BundleError, tmp_path / "nothing", "musicrt export"):
        Bundle.open(tmp_path / "nothing")


def test_file_in_place_of_a_bundle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"onnx")
    with refused(BundleError, file, "is a file"):
        Bundle.open(file)


def test_folder_without_manifest_is_refused(copy_bundle: Path) -> None:
    (copy_bundle / MANIFEST).unlink()
    with refused(BundleError, copy_bundle, MANIFEST):
        Bundle.open(copy_bundle)
