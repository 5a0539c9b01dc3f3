"""Codecs of the same number of values: audio of a narrow band, and a mel spectrogram inverted by Griffin and Lim; and 8-bit values."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import istft, stft

from musicrt.calibration.metrics import mel_filters

Audio = NDArray[np.float32]
ROUNDS = 32
FLOOR = 1e-4


def eight_bits(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The nearest of 256 steps between two ends."""
    step = (high - low) / 255.0
    return low + np.round((np.clip(values, low, high) - low) / step) * step


def narrow_band(audio: Audio, rate: int, values: float) -> Audio:
    """Resampled to as many samples a second, each of 8 bits at the level of the loudest, and back."""
    narrow = soxr.resample(audio.astype(np.float64), rate, values, "VHQ")
    peak = float(np.abs(narrow).max()) or 1.0
    back = soxr.resample(eight_bits(narrow, -peak, peak), values, rate, "VHQ")
    return np.pad(back, (0, max(0, len(audio) - len(back))))[: len(audio)].astype(np.float32)


def mel_codec(audio: Audio, rate: int, bands: int, hop: int) -> Audio:
    """Levels of `bands` mel bands each `hop` samples, 8 bits of logarithm each; back by non-negative least squares, Griffin and Lim."""
    size = 2 * hop
    window = {"nperseg": size, "noverlap": size - hop}
    magnitude = np.abs(stft(audio, **window)[2])
    filters = mel_filters(rate, size, bands)
    mel = np.exp(eight_bits(np.log(filters @ magnitude + FLOOR), np.log(FLOOR), 0.0)) - FLOOR
    linear = _invert(filters, mel)
    # A finer grid of frames gives Griffin and Lim the redundancy that they need.
    fine_hop = size // 8
    fine = {"nperseg": size, "noverlap": size - fine_hop}
    count = 1 + int(np.ceil(len(audio) / fine_hop))
    places, known = np.arange(count) * fine_hop / hop, np.arange(linear.shape[1])
    target = np.stack([np.interp(places, known, row) for row in linear]).astype(np.float32)
    rng = np.random.default_rng(0)
    spectrum = target * np.exp(2j * np.pi * rng.random(target.shape)).astype(np.complex64)
    for _ in range(ROUNDS):
        waves = istft(spectrum, **fine)[1]
        again = stft(waves, **fine)[2][:, :count]
        again = np.pad(again, ((0, 0), (0, count - again.shape[1])))
        spectrum = target * again / np.maximum(np.abs(again), 1e-9)
    waves = istft(spectrum, **fine)[1]
    return np.pad(waves, (0, max(0, len(audio) - len(waves))))[: len(audio)].astype(np.float32)


def _invert(filters: NDArray[np.float64], mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitudes >= 0 whose bands are as given: the least squares of the smallest norm, made non-negative."""
    start = np.maximum(np.linalg.pinv(filters) @ mel, 0.0)
    gram, target = filters.T @ filters, filters.T @ mel
    for _ in range(30):  # multiplicative updates keep the sign
        start *= target / np.maximum(gram @ start, 1e-9)
    return start
