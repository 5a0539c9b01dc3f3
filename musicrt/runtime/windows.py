"""Cutting long signals into windows, and joining what comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError


@dataclass(frozen=True)
class Window:
    """Positions start..stop of a signal of some length. Past its end the signal starts again from the beginning.

    `fade`: how many of them the window before has too. `dropped`: nothing of the result is kept.
    """

    start: int
    stop: int
    fade: int = 0
    dropped: bool = False

    @property
    def size(self) -> int:
        return self.stop - self.start


def chunk_windows(length: int, size: int) -> list[Window]:
    """Windows side by side; the last one is filled up from the beginning of the signal.

    A length that `size` divides gets one more window, of which nothing is kept: Music2Latent's official chunking.
    """
    if length <= size:
        return [Window(0, length)]
    return [Window(start, start + size, dropped=start == length) for start in range(0, length + 1, size)]


def overlapping_windows(length: int, size: int, overlap: int) -> list[Window]:
    """Windows of one size that share at least `overlap` positions with their neighbour; the last one ends with the signal."""
    if not 0 <= 2 * overlap <= size:
        raise InputError(f"got an overlap of {overlap} in windows of {size}, expected 0 to {size // 2}")
    if length <= size:
        return [Window(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    stops = [0, *(start + size for start in starts)]
    return [Window(start, start + size, fade=max(stop - start, 0)) for start, stop in zip(starts, stops, strict=False)]


def centred_ramp(length: int) -> NDArray[np.float32]:
    """A linear fade-in that begins and ends half a step beside 0 and 1."""
    return (np.arange(length, dtype=np.float32) + 0.5) / np.float32(length)


def inclusive_ramp(length: int) -> NDArray[np.float32]:
    """A linear fade-in that begins with 0 and ends with 1."""
    return np.linspace(0.0, 1.0, length).astype(np.float32)


def join_windows(
    windows: Iterable[tuple[Window, NDArray[np.float32]]],
    length: int,
    *,
    scale: int = 1,
    guard: int = 0,
    ramp: Callable[[int], NDArray[np.float32]] = centred_ramp,
) -> Iterator[NDArray[np.float32]]:
    """Join results along their last axis, cross-fading where windows overlap; in all `scale * length` values.

    `scale`: result positions for each position of the signal. `guard`: positions at a window's inner edges that are left
    out of the cross-fade, where the overlap is larger than twice that: they saw the zero padding of the edge.
    `ramp`: gives the fade-in of so many values; the fade-out is what it leaves of 1.
    """
    tail: NDArray[np.float32] | None = None
    pending: NDArray[np.float32] | None = None
    for window, value in windows:
        if window.dropped:
            continue
        if pending is not None:
            piece, tail = _emit(pending, tail, window.fade * scale, guard * scale, ramp)
            yield piece
        pending = value[..., : (min(window.stop, length) - window.start) * scale]
    if pending is not None:
        yield _emit(pending, tail, 0, guard * scale, ramp)[0]


def _emit(
    value: NDArray[np.float32],
    tail: NDArray[np.float32] | None,
    keep: int,
    guard: int,
    ramp: Callable[[int], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is final of a window's result, and the end of it that the next window fades out."""
    if tail is not None and tail.shape[-1]:
        fade = tail.shape[-1]
        guard = min(guard, (fade - 1) // 2)
        rise = np.concatenate([np.zeros(guard, np.float32), ramp(fade - 2 * guard), np.ones(guard, np.float32)])
        value = value.copy()
        value[..., :fade] = value[..., :fade] * rise + tail * (1.0 - rise)
    end = value.shape[-1] - keep
    return np.ascontiguousarray(value[..., :end]), value[..., end:]
