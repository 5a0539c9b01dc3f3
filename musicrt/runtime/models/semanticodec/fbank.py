"""The front-end on the host: Kaldi's log-mel filter bank, normalised (SPEC section 2.3)."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from musicrt.runtime.models.semanticodec.config import HOP, MEL_BINS, SAMPLE_RATE, SEGMENT_FRAMES

Float = NDArray[np.float32]

FRAME = 400
"""Samples of a frame."""
FFT_SIZE = 512
FFT_BINS = FFT_SIZE // 2 + 1
PRE_EMPHASIS = 0.97
"""How much of a sample is taken off the next one."""
LOWEST, HIGHEST = 20.0, 8000.0
"""Hz, the feet of the first and of the last filter."""
FLOOR = float(np.finfo(np.float32).eps)
"""Least energy of a bin, before the logarithm."""
MEAN, SCALE = -4.2677393, 2 * 4.5689974
"""Of the logarithms, which are normalised with them."""
PADDING = -MEAN / SCALE
"""What the official code fills the last two rows of a file with, which no frame fits: a log energy of 0, where silence is -15.9."""
_PIECE = SEGMENT_FRAMES  # frames at a time, to bound the memory


class FilterBank:
    """From samples at 16 kHz to the normalised mel spectrogram, in float32.

    The official code takes the mean of the whole signal off first. Taking off each frame's mean undoes that, so it is left out here,
    and a file need not be read twice.
    """

    def __init__(self) -> None:
        self._window, self._filters = hann_window().astype(np.float32), mel_filters().astype(np.float32)

    def analyse(self, samples: Float) -> Float:
        """float32 [batch, n >= 400] -> [batch, 1 + (n - 400) // 160, 128]."""
        frames = sliding_window_view(samples, FRAME, axis=-1)[:, ::HOP]
        mel = np.empty((*frames.shape[:2], MEL_BINS), np.float32)
        for item, output in zip(frames, mel, strict=True):
            for start in range(0, len(item), _PIECE):
                output[start : start + _PIECE] = self._analyse_frames(item[start : start + _PIECE])
        return mel

    def analyse_segment(self, samples: Float) -> Float:
        """float32 [batch, 163840], with 240 samples more where another segment follows -> [batch, 1024, 128], padded as officially."""
        mel = np.full((len(samples), SEGMENT_FRAMES, MEL_BINS), PADDING, np.float32)
        fitting = self.analyse(samples)
        mel[:, : fitting.shape[1]] = fitting
        return mel

    def _analyse_frames(self, frames: Float) -> Float:
        centred = frames - frames.mean(axis=1, keepdims=True)
        emphasised = centred.copy()
        emphasised[:, 1:] -= np.float32(PRE_EMPHASIS) * centred[:, :-1]
        emphasised[:, 0] -= np.float32(PRE_EMPHASIS) * centred[:, 0]
        spectrum = scipy.fft.rfft(emphasised * self._window, FFT_SIZE, axis=1)
        energies = (spectrum.real**2 + spectrum.imag**2) @ self._filters
        mel: Float = (np.log(np.maximum(energies, np.float32(FLOOR))) - np.float32(MEAN)) / np.float32(SCALE)
        return mel


def fbank_matrices() -> tuple[Float, Float]:
    """The same as a graph: analysis float32 [400, 2 * 257] and filters float32 [257, 128].

    `analysis` takes off the mean, emphasises, windows and transforms, all of it computed in float64: frame @ analysis is the real
    parts, then the imaginary ones. With their squares added up to energies [257], mel = log(max(energies @ filters, FLOOR)), which
    is still to be normalised.
    """
    centring = np.eye(FRAME) - 1.0 / FRAME
    emphasis = np.eye(FRAME) - PRE_EMPHASIS * np.eye(FRAME, k=1)
    emphasis[0, 0] -= PRE_EMPHASIS
    spectrum = scipy.fft.rfft(centring @ emphasis * hann_window(), FFT_SIZE, axis=1)
    return np.concatenate([spectrum.real, spectrum.imag], axis=1).astype(np.float32), mel_filters().astype(np.float32)


def hann_window() -> NDArray[np.float64]:
    """The symmetric Hann window [400]: both of its ends are 0."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FRAME) / (FRAME - 1))


def mel_filters() -> NDArray[np.float64]:
    """Triangles in mel, not normalised: [257, 128]. The bin at 8 kHz is in none, and the fourth filter holds no bin."""
    low, high = _to_mel(np.array([LOWEST, HIGHEST]))
    feet = np.linspace(low, high, MEL_BINS + 2)
    bins = _to_mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_BINS))[:, None]
    rising, falling = bins - feet[:-2], feet[2:] - bins
    filters: NDArray[np.float64] = np.maximum(np.minimum(rising, falling) / (feet[1] - feet[0]), 0.0)
    filters[-1] = 0.0
    return filters


def _to_mel(frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(frequencies / 700.0)
