"""Loudness to -16 LKFS with soft clipping, as the official demonstration writes its music (SPEC section 10), block by block.

Two passes: a `Meter` listens to all blocks, then `apply_gain` changes them. Loudness is that of ITU-R BS.1770, with filters in float32
whose outputs are clamped to [-1, 1], one after the other.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

Audio = NDArray[np.float32]
"""[channels, samples]"""

TARGET = -16.0
"""LKFS"""
LEAST_SECONDS = 0.4
"""Shorter audio has no loudness."""
_QUIET = 2e-3  # root mean square, below which nothing is changed
_SILENT = -70.0  # LKFS: quieter blocks do not count
_GATE = 10.0  # LU below the mean, from which on blocks do not count
_OFFSET = -0.691  # LKFS of a mean energy of 1
_WEIGHTED = 3  # channels that count; officially so


class Meter:
    """Measures the loudness of audio that comes in blocks. Keeps 0.4 s of it, and one number for each 0.1 s."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._filters = [(*_shelf(sample_rate), np.zeros((channels, 2), np.float32))]
        self._filters.append((*_high_pass(sample_rate), np.zeros((channels, 2), np.float32)))
        self._window = round(LEAST_SECONDS * sample_rate)
        self._hop = round(self._window / 4)
        self._held = np.zeros((channels, 0), np.float32)
        self._energies: list[NDArray[np.float64]] = []
        self._square, self._samples, self._rate = 0.0, 0, sample_rate

    def add(self, block: Audio) -> None:
        """Listen to float32 [channels, n]."""
        from scipy.signal import lfilter

        self._square += float(np.square(block, dtype=np.float64).sum())
        self._samples += block.shape[1]
        if not block.shape[1]:
            return
        heard = block
        for place, (b, a, state) in enumerate(self._filters):
            heard, state = lfilter(b, a, heard, axis=1, zi=state)
            heard = np.clip(heard, -1, 1)
            self._filters[place] = b, a, state
        held = np.concatenate([self._held, np.square(heard)], axis=1)
        count = max((held.shape[1] - self._window) // self._hop + 1, 0)
        sums = [held[:_WEIGHTED, start : start + self._window].mean(axis=1).sum() for start in range(0, count * self._hop, self._hop)]
        self._energies.append(np.array(sums, np.float64))
        self._held = held[:, count * self._hop :].copy()

    def rms(self) -> float:
        """Root mean square over all channels; 0 of no samples."""
        return math.sqrt(self._square / (self._samples * len(self._held))) if self._samples else 0.0

    def lkfs(self) -> float:
        """Gated loudness; -inf where nothing is louder than -70 LKFS. Raises InputError for audio below 0.4 s."""
        if self._samples < self._window:
            got = f"{self._samples / self._rate:.3f} s"
            raise InputError(f"got {got} of audio, expected at least {LEAST_SECONDS} s to measure its loudness; leave it as it is")
        energies = np.concatenate(self._energies)
        kept = energies[_loudness(energies) > _SILENT]
        if len(kept):
            kept = kept[_loudness(kept) > _loudness(kept.mean()) - _GATE]
        return float(_loudness(kept.mean())) if len(kept) else -math.inf

    def gain(self, target: float = TARGET) -> float | None:
        """What to multiply by; None where audio stays as it is, since there is (nearly) nothing to hear. Raises InputError as `lkfs`."""
        if self.rms() < _QUIET:
            return None
        loudness = self.lkfs()
        return 10 ** ((target - loudness) / 20) if math.isfinite(loudness) else None


def apply_gain(block: Audio, gain: float | None) -> Audio:
    """tanh(gain * block), float32; the block itself where there is no gain."""
    if gain is None:
        return block
    changed: Audio = np.clip(np.tanh(block * np.float32(gain)), -1, 1)
    return changed


def normalise(audio: Audio, sample_rate: int, target: float = TARGET) -> Audio:
    """Both passes over float32 [channels, samples]. Raises InputError: below 0.4 s, unless it is silent."""
    meter = Meter(sample_rate, len(audio))
    meter.add(audio)
    return apply_gain(audio, meter.gain(target))


def _loudness(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return _OFFSET + 10 * np.log10(energy)


def _shelf(sample_rate: int) -> tuple[Audio, Audio]:
    """4 dB more above 1500 Hz: numerator and denominator, float32 [3]."""
    angle = 2 * math.pi * 1500 / sample_rate
    alpha, amplitude, cosine = math.sin(angle) / math.sqrt(2), 10 ** (4 / 40), math.cos(angle)
    more, less, slope = amplitude + 1, amplitude - 1, 2 * math.sqrt(amplitude) * alpha
    b = [amplitude * (more + less * cosine + slope), -2 * amplitude * (less + more * cosine), amplitude * (more + less * cosine - slope)]
    return _coefficients(b, [more - less * cosine + slope, 2 * (less - more * cosine), more - less * cosine - slope])


def _high_pass(sample_rate: int) -> tuple[Audio, Audio]:
    """Nothing far below 38 Hz: numerator and denominator, float32 [3]."""
    angle = 2 * math.pi * 38 / sample_rate
    alpha, cosine = math.sin(angle), math.cos(angle)
    return _coefficients([(1 + cosine) / 2, -1 - cosine, (1 + cosine) / 2], [1 + alpha, -2 * cosine, 1 - alpha])


def _coefficients(b: list[float], a: list[float]) -> tuple[Audio, Audio]:
    """As the filter has them: float32, divided by the first of the denominator."""
    numerator, denominator = np.array(b, np.float32), np.array(a, np.float32)
    return numerator / denominator[0], denominator / denominator[0]
