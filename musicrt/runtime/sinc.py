"""Windowed-sinc resampling, the default of torchaudio or that of julius, block by block.

With the rates reduced to o and n, every o samples give n: number j of these is the input around j * o / n, weighted by a sinc under a
Hann window that ends so many zero crossings away. The weights are computed in float32, as both do: at 44.1 kHz that shows at 1e-5.
So is the length with torchaudio, which makes it a sample shorter than the exact one for a few lengths, and some samples off beyond
eight million.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from musicrt.runtime.waveform import Audio

_SPREAD = 4  # half widths of the filter from the first to the last phase of a matrix: slow when small, large when large
_PIECE = 1 << 18  # values of a channel in a temporary array


@dataclass(frozen=True)
class SincShape:
    """`crossings`: where the window ends, in zero crossings. `rolloff`: the cut-off, as a share of the lower Nyquist frequency.

    `is_julius`: weights are scaled to a sum of 1, the first and last samples go on for ever, and lengths are rounded down; else, as
    in torchaudio, they are what the formula gives, with silence around, and lengths are rounded up.
    """

    crossings: int
    rolloff: float
    is_julius: bool = False


TORCHAUDIO = SincShape(6, 0.99)
JULIUS = SincShape(24, 0.945, is_julius=True)


@dataclass(frozen=True)
class _Phases:
    """Some neighbours of the n samples: the input that they start at, and their weights, float32 [taps, phases]."""

    first: int
    weights: Audio


class SincFilter:
    """The weights for two rates: at most 30 bytes for each crossing and each Hz of the higher one, after reduction."""

    def __init__(self, source_rate: int, target_rate: int, shape: SincShape = TORCHAUDIO) -> None:
        self._shape = shape
        divisor = math.gcd(source_rate, target_rate)
        self.source, self.target = source_rate // divisor, target_rate // divisor
        self.cutoff = min(self.source, self.target) * shape.rolloff
        self.width = math.ceil(shape.crossings * self.source / self.cutoff)
        # Samples further than `width` from a phase have weight zero. One matrix for all phases would be nearly all zeros:
        # gigabytes of them for rates such as 44099 and 16000.
        count = max(_SPREAD * self.width * self.target // self.source, 1)
        self._groups = [self._weigh(start, min(start + count, self.target)) for start in range(0, self.target, count)]
        self.frames = max(_PIECE // max(self.source, self.target, len(self._groups[0].weights)), 1)

    def _weigh(self, start: int, stop: int) -> _Phases:
        crossings = self._shape.crossings
        first, last = start * self.source // self.target - self.width, (stop - 1) * self.source // self.target + self.width
        phases = np.arange(-start, -stop, -1, dtype=np.float32) / np.float32(self.target)
        angle = phases + np.arange(first, last + 1, dtype=np.float32)[:, None] / np.float32(self.source)
        angle *= self.cutoff
        np.clip(angle, -crossings, crossings, out=angle)
        angle *= np.pi
        window = np.cos(angle / np.float32(2 * crossings)) ** 2
        sinc = np.divide(np.sin(angle), angle, out=np.ones_like(angle), where=angle != 0)
        if self._shape.is_julius:
            weights = sinc * window
            return _Phases(first, weights / weights.sum(axis=0))
        return _Phases(first, sinc * (window * np.float32(self.cutoff / self.source)))

    def apply(self, audio: Audio, frames: int) -> Audio:
        """float32 [channels, at least frames * o + 2 * width], beginning `width` before the first frame -> [channels, frames * n]."""
        output = np.empty((len(audio), frames, self.target), np.float32)
        done = 0
        for group in self._groups:
            taps, phases = group.weights.shape
            windows = sliding_window_view(audio, taps, axis=1)[:, self.width + group.first :: self.source][:, :frames]
            output[:, :, done : done + phases] = np.ascontiguousarray(windows) @ group.weights
            done += phases
        return output.reshape(len(audio), -1)


def sinc_length(samples: int, source_rate: int, target_rate: int, shape: SincShape = TORCHAUDIO) -> int:
    """How many samples are kept: samples * target_rate / source_rate, rounded down (julius), or to float32 and then up (torchaudio)."""
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    if shape.is_julius:
        return target * samples // source
    return min(math.ceil(np.float32(target * samples / source)), (samples // source + 1) * target)


def resample_sinc(
    blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int, shape: SincShape = TORCHAUDIO
) -> Iterator[Audio]:
    """Resample float32 [channels, n] blocks to `sinc_length` samples, bit by bit the same for any blocks.

    Holds a block and, of each channel, up to 2^18 samples, or a second of them where the rates have no common divisor.
    """
    kernel = SincFilter(source_rate, target_rate, shape)
    step, edges = kernel.frames * kernel.source, 2 * kernel.width
    held, count = [np.zeros((channels, kernel.width), np.float32)], kernel.width
    taken = given = 0
    for block in blocks:
        if not taken and shape.is_julius and block.shape[1]:
            held = [np.repeat(block[:, :1], kernel.width, axis=1)]
        taken += block.shape[1]
        count += block.shape[1]
        held.append(block)
        pieces = (count - edges) // step
        if pieces < 1:
            continue
        audio = np.concatenate(held, axis=1)
        for piece in range(pieces):  # all of one size, because the rounding of a matrix product depends on it
            yield kernel.apply(audio[:, piece * step :], kernel.frames)
        given += pieces * kernel.frames * kernel.target
        held, count = [audio[:, pieces * step :].copy()], count - pieces * step
    rest = sinc_length(taken, source_rate, target_rate, shape) - given
    if rest > 0:
        frames = -(-rest // kernel.target)
        audio = np.concatenate(held, axis=1)
        missing = frames * kernel.source + edges - count
        padded = np.pad(audio, ((0, 0), (0, max(missing, 0))), mode="edge" if shape.is_julius else "constant")
        yield np.ascontiguousarray(kernel.apply(padded, frames)[:, :rest])
