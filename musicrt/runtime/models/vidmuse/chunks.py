"""Music longer than a window: which timesteps and which local frames each window has (SPEC section 8).

The last windows see frames of an earlier moment, as officially: the frames end with the video, and a window takes the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.delays import DelayPattern
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE
from musicrt.runtime.models.vidmuse.config import VIDEO_RATE, WINDOW_SECONDS

STRIDE = 29.5
"""Seconds from one window to the next, by default."""
LONGEST = 360_000.0
"""Seconds."""
MOST_TIMESTEPS = 1 << 14
"""Of a single window."""
_FRAMES = int(VIDEO_RATE * WINDOW_SECONDS)


@dataclass(frozen=True)
class Chunk:
    """A window: `timesteps` from `offset` on, of which the first `known` are there already; it sees the `local` frames."""

    offset: int
    timesteps: int
    known: int
    local: range


def check_duration(duration: object) -> float:
    """Seconds of music, at least one timestep. Raises InputError."""
    if isinstance(duration, bool) or not isinstance(duration, Real) or not 1 <= float(duration) * FRAME_RATE <= LONGEST * FRAME_RATE:
        raise InputError(f"got a duration of {duration!r} s, expected {1 / FRAME_RATE} to {LONGEST:.0f}")
    return float(duration)


def check_stride(stride: object) -> float:
    """Seconds from one window to the next, at least one timestep and less than a window. Raises InputError."""
    seconds = float(stride) if isinstance(stride, Real) and not isinstance(stride, bool) else math.nan
    if not math.isfinite(seconds) or int(FRAME_RATE * seconds) < 1:
        raise InputError(f"got extend_stride {stride!r}, expected seconds from {1 / FRAME_RATE} to below {WINDOW_SECONDS:.0f}")
    if seconds >= WINDOW_SECONDS:
        raise InputError(f"got extend_stride {stride!r}, expected less than the {WINDOW_SECONDS:.0f} s of a window; they have to overlap")
    return seconds


def plan_window(timesteps: object, frames: int, known: int = 0) -> Chunk:
    """A single window that sees all of `frames` local frames. Raises InputError for too few or too many timesteps."""
    if isinstance(timesteps, bool) or not isinstance(timesteps, Integral) or not known < int(timesteps) <= MOST_TIMESTEPS:
        raise InputError(f"got {timesteps!r} timesteps in all, expected {known + 1} to {MOST_TIMESTEPS}: more than the prompt has")
    return Chunk(0, int(timesteps), known, range(frames))


def plan_chunks(duration: float, stride: float, frames: int, known: int = 0) -> list[Chunk]:
    """The windows of so many seconds of music for a video of `frames` local frames, of whose music the first `known` timesteps are given.

    Times are rounded as officially, which can make the music one timestep shorter than int(50 duration). Raises InputError for a prompt
    that leaves nothing to do.
    """
    if duration <= WINDOW_SECONDS:
        chunks = [Chunk(0, int(duration * FRAME_RATE), known, range(frames))]
    else:
        chunks = list(_windows(duration, stride, frames, known))
    if not chunks or known >= chunks[0].timesteps:
        longest = min(int(duration * FRAME_RATE), int(WINDOW_SECONDS * FRAME_RATE))
        raise InputError(
            f"got a prompt of {known} timesteps ({known / FRAME_RATE:.2f} s), expected fewer than {longest}; "
            "shorten it, or make more music, up to 30 s of which it may be the beginning"
        )
    return chunks


def count_columns(pattern: DelayPattern, chunks: Sequence[Chunk]) -> int:
    """Columns of tokens that are written for these windows."""
    return sum(pattern.columns(chunk.timesteps) - pattern.first_column(chunk.known) for chunk in chunks)


def _windows(duration: float, stride: float, frames: int, known: int) -> list[Chunk]:
    total, shift = int(duration * FRAME_RATE), int(FRAME_RATE * stride)
    chunks: list[Chunk] = []
    offset = first = 0
    while offset + known < total:
        seconds = min(duration - offset / FRAME_RATE, WINDOW_SECONDS)
        timesteps, seen = int(seconds * FRAME_RATE), max(int(seconds * VIDEO_RATE), 1)
        if timesteps <= known:  # a rounding took the last timestep away
            break
        chunks.append(Chunk(offset, timesteps, known, range(first, min(first + seen, frames))))
        known = max(timesteps - shift, 0)
        moved = int(VIDEO_RATE * stride)
        first = max(frames - _FRAMES, first) if frames - first - moved < _FRAMES else first + moved
        offset += shift
    return chunks
