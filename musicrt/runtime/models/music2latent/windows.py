"""Which windows a signal is cut into, in latents: official chunks, or overlapping ones for streams (SPEC sections 9 and 10)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Literal

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.windows import Window, overlapping_windows

Chunking = Literal["seamless", "official"]

WINDOW = 5.0
"""Seconds in a window of the streaming calls."""
OVERLAP = 1.0
"""Seconds that neighbouring windows share."""
GUARD = 2
"""Latents at a window's edge that saw its zero padding."""


def is_official(chunking: str) -> bool:
    """Whether it is "official", not "seamless". Raises InputError for anything else."""
    if chunking not in ("seamless", "official"):
        raise InputError(f"got chunking {chunking!r}, expected 'seamless' or 'official'")
    return chunking == "official"


def chunk_size(config: Config, samples: int | None, default: int) -> int:
    """Latents in an official chunk of so many samples. Raises InputError where not even one fits."""
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, Integral) or samples < 1):
        raise InputError(f"got max_waveform_length {samples!r}, expected a whole number from 1 on")
    count = config.chunk_latents(default if samples is None else int(samples))
    if count < 1:
        raise InputError(f"got max_waveform_length {samples}, expected at least {config.samples_per_latent} samples, one latent")
    return count


def seamless_windows(config: Config, latents: int, window: float, overlap: float) -> list[Window]:
    """The windows of so many latents, of `window` seconds, that share `overlap` seconds. Raises InputError."""
    rate = config.sample_rate / config.samples_per_latent
    numbers = isinstance(window, Real) and isinstance(overlap, Real)
    if not numbers or not 0.0 <= 2 * overlap <= window < math.inf or window * rate < 1.0:
        raise InputError(
            f"got windows of {window!r} s with an overlap of {overlap!r} s, expected at least {1.0 / rate:.3f} s "
            "and an overlap of at most half a window"
        )
    size = round(window * rate)
    return overlapping_windows(latents, size, min(round(overlap * rate), size // 2))


def count_kept(channels: Iterable[int], plans: Iterable[list[Window]]) -> int:
    """The jobs of signals of so many channels with these windows: those of which something is kept."""
    return sum(count * sum(not window.dropped for window in plan) for count, plan in zip(channels, plans, strict=True))
