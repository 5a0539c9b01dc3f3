"""Windowed-sinc resampling, the default of torchaudio, block by block.

With the rates reduced to o and n, every o samples give n: number j of these is the input around j * o / n, weighted by a sinc under a
Hann window that ends six zero crossings away. The weights are computed in float32, as torchaudio does: at 44.1 kHz that shows at 1e-5.
So is the length, which makes it a sample shorter than the exact one for a few lengths, and some samples off beyond eight million.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from musicrt.runtime.waveform import Audio

_CROSSINGS = 6
_ROLLOFF = 0.99  # the cut-off, as a share of the lower Nyquist frequency
_SPREAD = 4  # half widths of the filter from the first to the last phase of a matrix: slow when small, large when large
_PIECE = 1 << 18  # values of a channel in a temporary array


@dataclass(frozen=True)
class _Phases:
    """Some neighbours of the n samples: the input that they start at, and their weights, float32 [taps, phases]."""

    first: int
    weights: Audio


class SincFilter:
    """The weights for two rates: at most 180 bytes for each Hz of the higher one, after reduction."""

    def __init__(self, source_rate: int, target_rate: int) -> None:
        divisor = math.gcd(source_rate, target_rate)
        self.source, self.target = source_rate // divisor, target_rate // divisor
        self.cutoff = min(self.source, self.target) * _ROLLOFF
        self.width = math.ceil(_CROSSINGS * self.source / self.cutoff)
        # Samples further than `width` from a phase have weight zero. One matrix for all phases would be nearly all zeros:
        # gigabytes of them for rates such as 44099 and 16000.
        count = max(_SPREAD * self.width * self.target // self.source, 1)
        self._groups = [self._weigh(start, min(start + count, self.target)) for start in range(0, self.target, count)]
        self.frames = max(_PIECE // max(self.source, self.target, len(self._groups[0].weights)), 1)

    def _weigh(self, start: int, stop: int) -> _Phases:
        first, last = start * self.source // self.target - self.width, (stop - 1) * self.source // self.target + self.width
        phases = np.arange(-start, -stop, -1, dtype=np.float32) / np.float32(self.target)
        angle = phases + np.arange(first, last + 1, dtype=np.float32)[:, None] / np.float32(self.source)
        angle *= self.cutoff
        np.clip(angle, -_CROSSINGS, _CROSSINGS, out=angle)
        angle *= np.pi
        window = np.cos(angle / np.float32(2 * _CROSSINGS)) ** 2
        sinc = np.divide(np.sin(angle), angle, out=np.ones_like(angle), where=angle != 0)
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


def sinc_length(samples: int, source_rate: int, target_rate: int) -> int:
    """How many samples are kept: ceil(samples * target_rate / source_rate), rounded to float32 first as torchaudio does."""
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    return min(math.ceil(np.float32(target * samples / source)), (samples // source + 1) * target)


def resample_sinc(blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int) -> Iterator[Audio]:
    """Resample float32 [channels, n] blocks to `sinc_length` samples, bit by bit the same for any blocks.

    Holds a block and, of each channel, up to 2^18 samples, or a second of them where the rates have no common divisor.
    """
    kernel = SincFilter(source_rate, target_rate)
    step, edges = kernel.frames * kernel.source, 2 * kernel.width
    held, count = [np.zeros((channels, kernel.width), np.float32)], kernel.width
    taken = given = 0
    for block in blocks:
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
    rest = sinc_length(taken, source_rate, target_rate) - given
    if rest > 0:
        frames = -(-rest // kernel.target)
        held.append(np.zeros((channels, frames * kernel.source + edges - count), np.float32))
        yield np.ascontiguousarray(kernel.apply(np.concatenate(held, axis=1), frames)[:, :rest])
