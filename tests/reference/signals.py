"""Signals that are a pure function of their name: the weights, inputs and noise of recorded cases.

Every operation is in a fixed order and precision, because recordings were made from exactly these bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

_BLOCK = 1 << 22  # values made at once: full-size tensors would otherwise need several times their memory
_GOLDEN, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def unit(name: str, shape: Shape) -> NDArray[np.float32]:
    """Uniform float32 in [-1, 1): splitmix64 of the C-order index, seeded by the first 8 bytes of sha256(name)."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    values = np.empty(math.prod(shape), np.float32)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        counter = np.arange(start + 1, start + 1 + block.size, dtype=np.uint64)
        upper24 = _mixed(counter * _GOLDEN + seed) >> np.uint64(40)  # what a float32 can hold exactly
        block[:] = upper24.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return values.reshape(shape)


def normal(name: str, shape: Shape) -> NDArray[np.float32]:
    """Standard normal float32: Box-Muller in float64 on two uniform streams."""
    u1, u2 = _unit_interval(f"{name}/u1", shape), _unit_interval(f"{name}/u2", shape)
    radius = np.sqrt(-2.0 * np.log(np.maximum(u1, 2.0**-25)))
    return (radius * np.cos(2.0 * np.pi * u2)).astype(np.float32)


def audio(name: str, seconds: float, sample_rate: int, channels: int = 1) -> NDArray[np.float32]:
    """Music-like float32 (channels, samples) within [-0.9, 0.9]: decaying harmonic notes and a little noise."""
    samples = round(seconds * sample_rate)
    time = np.arange(samples) / sample_rate
    mix = np.zeros((channels, samples))
    notes = _unit_interval(f"{name}/notes", (channels, max(4, int(seconds * 4)), 3))
    for channel, track in enumerate(mix):
        for start, pitch, decay in notes[channel]:
            for harmonic in _harmonics(time, start * seconds, 55.0 * 2.0 ** (np.floor(pitch * 48) / 12.0), decay, 0.45 * sample_rate):
                track += harmonic
        track += 0.01 * unit(f"{name}/noise{channel}", (samples,))
    return np.asarray(0.9 * mix / np.maximum(np.abs(mix).max(), 1e-9), np.float32)


def video(name: str, frames: int, size: int) -> NDArray[np.uint8]:
    """Moving colour gradients, uint8 (frames, 3, size, size)."""
    y, x = np.mgrid[0:size, 0:size] / size
    phase = (unit(f"{name}/phase", (3, 4)).astype(np.float64) + 1.0) * np.pi
    pictures = np.empty((frames, 3, size, size), np.uint8)
    for frame, colour in np.ndindex(frames, 3):
        a, b, c, _ = phase[colour]
        wave = np.sin(6 * x + a + 0.3 * frame) + np.cos(9 * y + b - 0.17 * frame)
        wave = wave + np.sin(14 * (x + y) + c + 0.05 * frame * (colour + 1))
        pictures[frame, colour] = np.clip((wave + 3.0) / 6.0 * 255.0, 0, 255).astype(np.uint8)
    return pictures


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64; products wrap."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def _unit_interval(name: str, shape: Shape) -> NDArray[np.float64]:
    return (unit(name, shape).astype(np.float64) + 1.0) / 2.0


def _harmonics(time: NDArray[np.float64], start: float, pitch: float, decay: float, limit: float) -> Iterator[NDArray[np.float64]]:
    """The partials of one note below `limit` Hz, lowest first; they are summed one by one, so that rounding is reproducible."""
    age = np.maximum(time - start, 0.0)
    envelope = np.where(time >= start, np.exp(-age * (1.0 + 6.0 * decay)), 0.0)
    for number in range(1, 9):
        if pitch * number < limit:
            yield envelope * np.sin(2 * np.pi * pitch * number * age) / number**1.3
