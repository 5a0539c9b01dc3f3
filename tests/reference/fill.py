"""Checkpoints in the official layout (same files, keys, shapes) whose values follow from the names of the tensors.

A layout is a JSON file: {"rules": [[regex, kind], ...],
                          "files": {relative path: {"format": "torch" | "safetensors" | "npy",
                                                    "nest": [keys from the root to the tensors],
                                                    "extra": {plain values beside them at the root},
                                                    "tensors": {key: [shape, numpy dtype]}}}}
The first rule whose pattern is found in a key says how its tensor is filled; without one its kind is `auto`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from musicrt.runtime.errors import InputError
from musicrt.runtime.files import new_folder
from tests.reference.signals import Array, Shape, unit

Layout = dict[str, Any]


def write_checkpoint(folder: Path, layout_name: str, given_name: str | None, salt: str, out: Path) -> None:
    """Write the checkpoint of a layout in `folder` as the new folder `out`.

    `given_name`: safetensors file beside the layout with the tensors whose true values matter. Raises InputError, OutputError.
    """
    given = load_file(folder / given_name) if given_name else {}
    write_files(json.loads((folder / layout_name).read_text()), given, salt, out)


def write_files(layout: Layout, given: Mapping[str, Array], salt: str, out: Path) -> None:
    """Write every file of a layout under the new folder `out`. Raises InputError, OutputError."""
    with new_folder(out) as folder:
        for file, spec in layout["files"].items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, spec, checkpoint_tensors(layout, file, given, salt))


def checkpoint_tensors(layout: Layout, file: str, given: Mapping[str, Array], salt: str = "") -> dict[str, Array]:
    """All tensors of one file of a layout by official key: those in `given` as they are, the others filled.

    `salt` makes another set of weights: it goes before the key where values are drawn, not where the kind is decided.
    """
    rules = [(re.compile(pattern), kind) for pattern, kind in layout.get("rules", [])]
    tensors: dict[str, Array] = {}
    for key, (shape, dtype) in layout["files"][file]["tensors"].items():
        if key in given:
            tensors[key] = given[key]
            continue
        kind = next((kind for pattern, kind in rules if pattern.search(key)), "auto")
        kind = kind_of(key, tuple(shape)) if kind == "auto" else kind
        tensors[key] = np.asarray(fill(salt + key, tuple(shape), kind)).astype(dtype, copy=False)
    return tensors


def kind_of(key: str, shape: Shape) -> str:
    """What `auto` means: decided by the last part of the key and by the rank."""
    match key.rsplit(".", 1)[-1]:
        case "num_batches_tracked":
            return "const:0"
        case "running_var" | "weight_g" | "original0":
            return "positive"
        case "weight" | "gamma" | "g" | "alpha" if len(shape) < 2:
            return "scale"
    return "matrix" if len(shape) >= 2 else "shift"


def fill(name: str, shape: Shape, kind: str) -> Array:
    """float32 values of a kind: matrix[:gain], embedding[:gain], scale, shift, positive, const:value. Raises InputError."""
    rule, _, argument = kind.partition(":")
    match rule:
        case "matrix":  # keeps the variance of what passes through it
            fan_in = max(1, math.prod(shape[1:]))
            return unit(name, shape) * np.float32(float(argument or 1.0) * math.sqrt(3.0 / fan_in))
        case "embedding":
            return unit(name, shape) * np.float32(float(argument or 1.0))
        case "scale":
            return np.float32(1.0) + np.float32(0.1) * unit(name, shape)
        case "shift":
            return np.float32(0.05) * unit(name, shape)
        case "positive":
            return np.float32(1.0) + np.float32(0.3) * unit(name, shape)
        case "const":
            return np.full(shape, float(argument), np.float32)
    raise InputError(f"unknown fill kind {kind!r} for {name}; expected matrix, embedding, scale, shift, positive or const:value")


def _write(target: Path, spec: Mapping[str, Any], tensors: dict[str, Array]) -> None:
    match spec["format"]:
        case "torch":
            _write_torch(target, spec, tensors)
        case "safetensors":
            save_file(tensors, target)
        case "npy":
            (array,) = tensors.values()
            np.save(target, array)
        case other:
            raise InputError(f"unknown file format {other!r} for {target.name}; expected torch, safetensors or npy")


def _write_torch(target: Path, spec: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    import torch  # the one format that needs it

    content: dict[str, Any] = {key: torch.from_numpy(np.require(value, requirements=["C", "W"])) for key, value in tensors.items()}
    for name in reversed(spec.get("nest", [])):
        content = {name: content}
    torch.save({**content, **spec.get("extra", {})}, target)
