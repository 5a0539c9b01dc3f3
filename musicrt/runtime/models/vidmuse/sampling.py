"""Which frames of a video are looked at (SPEC section 4)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Numbers of frames, in the order of display, from 0 on."""

FRAME_RATE = 2
"""Local frames for each second. Really they are `rate / ceil(rate / 2)` a second, which is 2 for even rates only."""


def local_ids(frames: int, rate: float, seconds: int, start: float = 0.0, frame_rate: int = FRAME_RATE) -> Ids:
    """Every ceil(rate / frame_rate)-th of so many frames at `rate` a second, at most seconds * frame_rate: int64 [n]."""
    interval, first = math.ceil(rate / frame_rate), int(start * rate)
    return np.arange(first, min(first + interval * frame_rate * seconds, frames), interval)


def pad_ids(ids: Ids, count: int) -> Ids:
    """So many of the ids: the last one comes again, or the rest is dropped."""
    return ids[np.minimum(np.arange(count), len(ids) - 1)]


def global_ids(frames: int, count: int) -> Ids:
    """Even steps through the whole video, in float32, rounded down: int64 [count]; some come again where there are fewer frames."""
    end, places = np.float32(frames - 1), np.arange(count)
    step = end / np.float32(max(count - 1, 1))
    rising, falling = step * places.astype(np.float32), end - step * (count - 1 - places).astype(np.float32)
    steps = np.where(places < count // 2, rising, falling) if count > 1 else np.zeros(1, np.float32)
    return np.minimum(steps.astype(np.int64), frames - 1)
