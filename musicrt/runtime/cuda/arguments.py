"""What the kernels take: arrays on the GPU in groups, and the structures that are handed to a launch by value."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.sampling import COLDEST, Sampling

SOLVERS = {"ddim": 5, "dpm-solver++": 5, "flow": 3, "consistency": 4}
"""Solvers, and how many coefficients a step of each has; `sources/solvers.cuh` says which."""
STATE = ("column", "stop", "end", "call", "failed", "arrived")
"""What the numbers in `Choice.state` are."""
MOST_CARD = 4096
"""Tokens that a codebook may have: as many as are sorted in the memory that threads of a block share."""


class Extent(ctypes.Structure):
    """The sizes of a signal; `Extent` of `sources/signal.cuh`."""

    _fields_ = [(name, ctypes.c_int) for name in ("batch", "planes", "bins", "frames", "frames_last")]


class NoiseArguments(ctypes.Structure):
    """Where noise comes from; `Noise` of `sources/signal.cuh`."""

    _fields_ = [("given", ctypes.c_void_p), ("seed", ctypes.c_void_p), ("places", ctypes.c_void_p), ("draw", ctypes.c_int)]


@dataclass(frozen=True)
class Signal:
    """What a solver works on, in place.

    x: the network's input, float32 [batch, planes, bins, frames] where `frames_last`, else [batch, planes, frames, bins]. state: what the
    solver carries from step to step, of the same shape; None for "ddim", which carries nothing.
    """

    x: DeviceArray
    state: DeviceArray | None
    frames_last: bool

    def extent(self) -> Extent:
        """Its sizes. Raises InputError for arrays that do not fit."""
        check("x", self.x, np.float32, (None,) * 4)
        if self.state is not None:
            check("state", self.state, np.float32, self.x.shape)
        batch, planes, third, fourth = self.x.shape
        bins, frames = (third, fourth) if self.frames_last else (fourth, third)
        if math.prod(self.x.shape) >= 1 << 31:
            raise InputError(f"got a signal of shape {list(self.x.shape)}, expected fewer than 2**31 values; use a smaller batch")
        return Extent(batch, planes, bins, frames, self.frames_last)


@dataclass(frozen=True)
class GivenNoise:
    """Draws that were uploaded: float32 [draws, ...], each of the signal's shape."""

    draws: DeviceArray


@dataclass(frozen=True)
class SeededNoise:
    """Draws by position (`musicrt.runtime.noise`). seed: uint64 [1]. places: int32 [batch, 2], channel and first frame of each item."""

    seed: DeviceArray
    places: DeviceArray


Noise = GivenNoise | SeededNoise


@dataclass(frozen=True)
class Choice:
    """All that the choice of a column of tokens reads and writes.

    logits: float32 or float16 [2, batch, codebooks, card], row 0 with the condition; or [2, batch, codebooks, n, card], of which the last
    of n counts. settings: float32 [4], see `choice_settings`. delays: int32 [codebooks], and `special`: those of the pattern. tokens: int64
    [batch, codebooks, room], -1 where one is to be chosen. fed: int64 [batch, codebooks, 1], the written column. length: int64 [1], the
    columns before that one. state: int32 [6], see `choice_state`. seed: uint64 [1], or uniforms: float64 [calls, batch * codebooks]; a
    greedy choice needs neither.
    """

    logits: DeviceArray
    settings: DeviceArray
    delays: DeviceArray
    special: int
    tokens: DeviceArray
    fed: DeviceArray
    length: DeviceArray
    state: DeviceArray
    seed: DeviceArray | None = None
    uniforms: DeviceArray | None = None


def choice_settings(sampling: Sampling, guidance: float) -> NDArray[np.float32]:
    """What may be chosen, as the kernel takes it: guidance, temperature (0: greedy), top_p (0: off), top_k (0: all); float32 [4]."""
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    temperature = 0.0 if sampling.is_greedy else max(sampling.temperature, COLDEST)
    top_p = max(float(sampling.top_p), tiny) if sampling.top_p > 0 else 0.0  # float32 must not round it down to off
    return np.array([guidance, temperature, top_p, sampling.top_k], np.float32)


def choice_state(column: int, stop: int, end: int, call: int) -> NDArray[np.int32]:
    """The state before a choice: the column that is written next, the one that is left alone (`stop`, at most `end`), the columns of the
    sequence, and the first draw; int32 [6]."""
    return np.array([column, stop, end, call, 0, 0], np.int32)


def check(name: str, array: DeviceArray, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Raises InputError unless an array has this dtype and shape; None stands for any size."""
    fits = len(array.shape) == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape, strict=True))
    if array.dtype != np.dtype(dtype) or not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{name}: got {array.dtype} {list(array.shape)} on the GPU, expected {np.dtype(dtype)} [{expected}]")
