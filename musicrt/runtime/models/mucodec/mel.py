"""The two mel spectrograms on the host, by FFT (SPEC sections 3.2 and 4.7); `dft_basis` and the filters make graphs of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from musicrt.runtime.models.mucodec.config import MEL_BINS, MEL_HOP, MUQ_BINS, MUQ_CODE_SAMPLES, MUQ_HOP, MUQ_RATE, SAMPLE_RATE

Float = NDArray[np.float32]

FFT_SIZE = 2048
"""Also the length of the window."""
FFT_BINS = FFT_SIZE // 2 + 1
REFLECTION = FFT_SIZE // 2
"""Samples that are mirrored at both ends, so that frames are centred."""
POWER_FLOOR = 1e-10
"""Least power of a band of MuQ's spectrogram."""
MAGNITUDE_FLOOR = 1e-5
"""Least magnitude of a band of the prompt's."""
PROMPT_LOWEST = 20.0
"""Hz, the foot of the prompt's first filter."""
_PIECE = 1024  # frames at a time, to bound the memory


class MuqMel:
    """MuQ's spectrogram: power in dB, normalised with `mean` and `deviation` in dB."""

    def __init__(self, mean: float, deviation: float) -> None:
        self._mean, self._deviation = np.float32(mean), np.float32(deviation)
        self._filters = muq_filters()

    def analyse(self, samples: Float) -> Float:
        """float32 [B, n] at 24 kHz, n > 1024 -> [B, 128, 4 * (n // 960)]: of whole codes, without the last frame of those."""
        whole = samples[:, : samples.shape[1] // MUQ_CODE_SAMPLES * MUQ_CODE_SAMPLES]
        mel = _analyse(whole, MUQ_HOP, whole.shape[1] // MUQ_HOP, MUQ_BINS, self._measure)
        return np.ascontiguousarray(mel.transpose(0, 2, 1))

    def _measure(self, spectrum: NDArray[np.complex64]) -> Float:
        power = (spectrum.real**2 + spectrum.imag**2) @ self._filters
        decibels = np.float32(10.0) * np.log10(np.maximum(power, np.float32(POWER_FLOOR)))
        measured: Float = (decibels - self._mean) / self._deviation
        return measured


class PromptMel:
    """The spectrogram that the VAE encodes: logarithm of magnitudes."""

    def __init__(self) -> None:
        self._filters = prompt_filters()

    def analyse(self, samples: Float) -> Float:
        """float32 [B, n] at 48 kHz, n > 1024, clipped to [-1, 1] -> [B, 1 + n // 480, 256]."""
        return _analyse(np.clip(samples, -1.0, 1.0), MEL_HOP, 1 + samples.shape[1] // MEL_HOP, MEL_BINS, self._measure)

    def _measure(self, spectrum: NDArray[np.complex64]) -> Float:
        magnitudes = np.sqrt(spectrum.real**2 + spectrum.imag**2) @ self._filters
        measured: Float = np.log(np.maximum(magnitudes, np.float32(MAGNITUDE_FLOOR)))
        return measured


def _analyse(samples: Float, hop: int, count: int, bands: int, measure: Callable[[NDArray[np.complex64]], Float]) -> Float:
    """The first `count` frames: float32 [B, count, bands]."""
    window = hann_window().astype(np.float32)
    mel = np.empty((len(samples), count, bands), np.float32)
    for item, output in zip(samples, mel, strict=True):
        frames = sliding_window_view(np.pad(item, REFLECTION, mode="reflect"), FFT_SIZE)[::hop]
        for start in range(0, count, _PIECE):
            stop = min(start + _PIECE, count)
            output[start:stop] = measure(scipy.fft.rfft(frames[start:stop] * window, axis=1))
    return mel


def hann_window() -> NDArray[np.float64]:
    """The periodic Hann window [2048]."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)


def dft_basis() -> Float:
    """The windowed transform as a matrix: float32 [2 * 1025, 2048], the real parts, then the imaginary ones."""
    spectrum = scipy.fft.rfft(np.diag(hann_window()), axis=1).T
    return np.concatenate([spectrum.real, spectrum.imag]).astype(np.float32)


def muq_filters() -> Float:
    """Triangles in HTK's mel from 0 to 12000 Hz, as high as wide: float32 [1025, 128]."""
    highest = 2595.0 * np.log10(1.0 + MUQ_RATE / 2 / 700.0)
    feet = 700.0 * (10.0 ** (np.linspace(0.0, highest, MUQ_BINS + 2) / 2595.0) - 1.0)
    return _triangles(feet, MUQ_RATE).astype(np.float32)


def prompt_filters() -> Float:
    """Triangles in Slaney's mel from 20 to 24000 Hz, of the same area each: float32 [1025, 256]."""
    low, high = _to_slaney(PROMPT_LOWEST), _to_slaney(SAMPLE_RATE / 2)
    feet = _from_slaney(np.linspace(low, high, MEL_BINS + 2))
    return (_triangles(feet, SAMPLE_RATE) * (2.0 / (feet[2:] - feet[:-2]))).astype(np.float32)


def _triangles(feet: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """A filter from every foot over the next to the one after that, 1 there: [1025, feet - 2]. feet: Hz."""
    bins = np.linspace(0.0, rate / 2, FFT_BINS)[:, None]
    widths = np.diff(feet)
    rising, falling = (bins - feet[:-2]) / widths[:-1], (feet[2:] - bins) / widths[1:]
    triangles: NDArray[np.float64] = np.maximum(np.minimum(rising, falling), 0.0)
    return triangles


# Slaney's mel is linear up to 1000 Hz, which is 15, and logarithmic from there.
_LINEAR = 200.0 / 3.0
_BREAK, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _to_slaney(frequency: float) -> float:
    if frequency < _BREAK:
        return frequency / _LINEAR
    return float(_BREAK_MEL + np.log(frequency / _BREAK) / _LOG_STEP)


def _from_slaney(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < _BREAK_MEL, mels * _LINEAR, _BREAK * np.exp((mels - _BREAK_MEL) * _LOG_STEP))
