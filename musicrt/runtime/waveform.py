"""Audio as an array: float32 [channels, samples] in [-1, 1], the limits of what is taken, and the checks of what users pass."""

from __future__ import annotations

import numbers
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from musicrt.runtime.errors import InputError

Audio = npt.NDArray[np.float32]
"""[channels, samples]"""

HIGHEST_RATE = 768_000
"""Hz"""
MOST_CHANNELS = 64


class Bad(NamedTuple):
    """How many values are NaN or infinite, and where the first one is."""

    total: int
    channel: int
    sample: int


def check_audio(array: npt.ArrayLike, name: str = "audio") -> Audio:
    """Give a user's array as C-contiguous float32 [channels, samples] (itself, if it is that already); [samples] becomes [1, samples].

    Raises InputError for a wrong dtype or shape, and for NaN or infinity.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: got {type(array).__name__}, expected a numpy array [channels, samples]; convert it first")
    if array.dtype.kind in "iu":
        half = 2 ** (8 * array.dtype.itemsize - 1)
        how = f"divide by {half}" if array.dtype.kind == "i" else f"subtract {half}, then divide by {half}"
        raise InputError(f"{name}: got dtype {array.dtype}, expected float32 in [-1, 1]; {how} first")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{name}: got dtype {array.dtype}, expected float16, float32 or float64 in [-1, 1]; convert it first")
    if array.ndim not in (1, 2):
        raise InputError(f"{name}: got shape {array.shape}, expected [channels, samples]; pass one piece of audio at a time")
    channels, samples = array.shape if array.ndim == 2 else (1, len(array))
    if channels > MOST_CHANNELS >= samples:
        raise InputError(f"{name}: got shape {array.shape}, which looks like (samples, channels); pass {name}.T")
    if channels == 0:
        raise InputError(f"{name}: got shape {array.shape}, expected at least one channel")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such
        audio = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    if bad := find_bad(audio):
        raise InputError(f"{name}: got {bad.total} NaN or infinite values, the first at channel {bad.channel}, sample {bad.sample}")
    return audio


def check_rate(rate: int) -> int:
    """A sample rate in Hz as an int. Raises InputError for anything else."""
    if not isinstance(rate, numbers.Integral) or isinstance(rate, bool) or not 1 <= rate <= HIGHEST_RATE:
        raise InputError(f"sample rate: got {rate!r}, expected a whole number of Hz from 1 to {HIGHEST_RATE}")
    return int(rate)


def find_bad(audio: Audio) -> Bad | None:
    """The NaN and infinite values of [channels, samples]; None if there are none."""
    bad = ~np.isfinite(audio)
    if not bad.any():
        return None
    sample = int(bad.any(axis=0).argmax())
    return Bad(int(np.count_nonzero(bad)), int(bad[:, sample].argmax()), sample)
