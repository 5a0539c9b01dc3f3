"""Recorded cases: rebuild their inputs and noise, compare outputs with what the official code produced.

A case is a safetensors file with a JSON description under the metadata key `case` (see README.md). Inputs are recipes,
{"generator": name, "args": [...], "ops": [[op, ...], ...]}; noise is drawn by name, in the order of the official draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from musicrt.runtime.errors import InputError
from tests.reference import signals
from tests.reference.signals import Array

Recipe = Mapping[str, Any]
Index = tuple[int | slice | EllipsisType | None, ...]


@dataclass(frozen=True)
class Verdict:
    """How one output compares. `error`: relative L2, or for exact outputs the number of elements that differ without excuse."""

    output: str
    ok: bool
    error: float
    tolerance: float
    detail: str


@dataclass(frozen=True)
class Case:
    """One recorded run: its description, and the arrays stored with it."""

    path: Path
    info: dict[str, Any]
    stored: dict[str, Array] = field(repr=False)

    @property
    def stage(self) -> str:
        """Stage id, as in the system's list of stages."""
        return str(self.info["stage"])

    @property
    def inputs(self) -> dict[str, Array]:
        """The inputs by tensor name, built anew at each access. Raises InputError: unknown recipe."""
        return {name: build(recipe, self.stored) for name, recipe in self.info["inputs"].items()}

    @property
    def noise(self) -> list[Array]:
        """The random draws in the order of the official code, float32, built anew at each access."""
        return [_generate(n.get("generator", "normal"), [n["name"], tuple(n["shape"])], self.stored) for n in self.info["noise"]]

    def compare(self, outputs: Mapping[str, Array], slack: float = 1.0) -> list[Verdict]:
        """Hold whole outputs against the recording; `slack` widens float tolerances. Missing `trace/...` outputs don't count."""
        return [
            self._verdict(name, spec, outputs.get(name), slack)
            for name, spec in self.info["outputs"].items()
            if name in outputs or not name.startswith("trace/")
        ]

    def _verdict(self, name: str, spec: Mapping[str, Any], output: Array | None, slack: float) -> Verdict:
        exact = bool(spec.get("exact"))
        tolerance = 0.0 if exact else slack * spec.get("rel_l2", math.inf)
        if output is None:
            return Verdict(name, False, math.inf, tolerance, "not produced")
        output = np.asarray(output)
        if list(output.shape) != list(spec["shape"]):
            return Verdict(name, False, math.inf, tolerance, f"shape {list(output.shape)}, recorded {spec['shape']}")
        got, want = select(output, spec["select"]), self.stored[spec["key"]]
        if exact:
            return self._exact(name, spec, got, want)
        return _close(name, got.astype(np.float64), want.astype(np.float64), slack * spec.get("atol", math.inf), tolerance)

    def _exact(self, name: str, spec: Mapping[str, Any], got: Array, want: Array) -> Verdict:
        wrong = got != want
        excused = np.zeros_like(wrong)
        if "margin" in spec:  # where the official choice was a tie within rounding, its runner-up is as good
            excused = wrong & (self.stored[spec["margin"]] <= spec["margin_floor"])
            if "runner_up" in spec:
                excused &= got == self.stored[spec["runner_up"]]
        bad = int(wrong.sum()) - int(excused.sum())
        return Verdict(name, bad == 0, float(bad), 0.0, f"{bad} of {want.size} differ ({int(excused.sum())} ties)")


def load_case(path: Path) -> Case:
    """Read one case file. Raises InputError: missing, damaged, or of another format."""
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("case")
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict, it can't be iterated
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as a safetensors file ({error}); expected a recorded case") from None
    info = json.loads(text) if text else {}
    if info.get("format") != 2:
        raise InputError(f"{path} has case format {info.get('format')}, expected 2; record it anew")
    return Case(path, info, stored)


def build(recipe: Recipe, stored: Mapping[str, Array]) -> Array:
    """The C-contiguous array that a recipe describes. Raises InputError: unknown generator or op."""
    array = _generate(recipe["generator"], recipe.get("args", []), stored)
    for op in recipe.get("ops", []):
        array = _apply(array, op, stored)
    return np.ascontiguousarray(array)


def select(output: Array, part: str) -> Array:
    """The recorded part of a whole output: "whole", "flat[a::s]" of the flattened output, or an index such as "[:, ::7]"."""
    if part == "whole":
        return output
    if part.startswith("flat"):
        return np.asarray(output.reshape(-1)[parse_index(part.removeprefix("flat"))])
    return np.asarray(output[parse_index(part)])


def parse_index(text: str) -> Index:
    """`"0, :3, ..., None, ::2"`, with or without brackets, as an index; nothing is evaluated."""
    return tuple(_index_part(part.strip()) for part in text.strip().strip("[]").split(","))


def _index_part(text: str) -> int | slice | EllipsisType | None:
    if text == "...":
        return Ellipsis
    if text == "None":
        return None
    if ":" in text:
        return slice(*(int(bound) if bound.strip() else None for bound in text.split(":")))
    return int(text)


def _generate(generator: str, args: list[Any], stored: Mapping[str, Array]) -> Array:
    match generator:
        case "audio":
            return signals.audio(*args)
        case "video":
            return signals.video(*args)
        case "normal":
            return signals.normal(args[0], tuple(args[1]))
        case "unit":
            return signals.unit(args[0], tuple(args[1]))
        case "zeros":
            return np.zeros(args[0], np.float32)
        case "ones":
            return np.ones(args[0], np.float32)
        case "full":
            return np.full(args[0], args[1], np.float32)
        case "value":
            return np.asarray(args[0], np.float32)
        case "stored":
            return stored[args[0]]
    raise InputError(
        f"unknown generator {generator!r} in a recipe; expected audio, video, normal, unit, zeros, ones, full, value or stored"
    )


def _apply(x: Array, op: list[Any], stored: Mapping[str, Array]) -> Array:
    match op:
        case ["times", factor]:
            return x.astype(np.float32) * np.float32(factor)
        case ["plus", term]:
            return x.astype(np.float32) + np.float32(term)
        case ["slice", index]:
            return np.asarray(x[parse_index(index)])
        case ["reshape", shape]:
            return x.reshape(shape)
        case ["transpose", axes]:
            return x.transpose(axes)
        case ["astype", dtype]:
            return x.astype(dtype)
        case ["mean", axis, keepdims]:
            return np.asarray(x.mean(axis=axis, keepdims=bool(keepdims))).astype(np.float32)
        case ["repeat", axis, count]:
            return np.repeat(x, count, axis=axis)
        case ["tile", counts]:
            return np.tile(x, counts)
        case ["pad", widths, *value]:
            return np.pad(x, widths, constant_values=value[0] if value else 0)
        case ["concat", axis, recipes]:
            return np.concatenate([x, *(build(recipe, stored) for recipe in recipes)], axis=axis)
        case ["stack", axis, recipes]:
            return np.stack([x, *(build(recipe, stored) for recipe in recipes)], axis=axis)
        case ["set", index, value]:
            changed = x.copy()
            changed[parse_index(index)] = value
            return changed
        case ["codes", count]:
            return np.asarray(np.minimum(np.floor((x.astype(np.float64) + 1.0) / 2.0 * count), count - 1), np.int64)
        case ["clip", low, high]:
            return np.asarray(np.clip(x, low, high))
        case ["pcm16"]:
            return np.asarray(np.clip(np.round(x.astype(np.float64) * 32768.0), -32768, 32767) / 32768.0, np.float32)
    raise InputError(f"unknown op {op!r} in a recipe; see README.md for those there are")


def _close(name: str, got: Array, want: Array, atol: float, rel_l2: float) -> Verdict:
    if not np.isfinite(got).all():
        return Verdict(name, False, math.inf, rel_l2, f"{int((~np.isfinite(got)).sum())} of {got.size} are NaN or infinite")
    worst = float(np.abs(got - want).max(initial=0.0))
    error = float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), 1e-30)
    detail = f"max {worst:.2e} (<= {atol:.0e}), rel l2 {error:.2e} (<= {rel_l2:.0e})"
    return Verdict(name, worst <= atol and error <= rel_l2, error, rel_l2, detail)
