"""Front-end and synthesis on the host: companded short-time Fourier transform and its inverse (SPEC section 3)."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from musicrt.runtime.models.music2latent.config import Config

Float = NDArray[np.float32]


def hann_window(size: int) -> NDArray[np.float64]:
    """The periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)


class Spectrum:
    """Front-end and synthesis of one configuration. Always float32 or better (SPEC section 11)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._window = hann_window(config.fft_size).astype(np.float32)

    def analyse(self, audio: Float) -> Float:
        """audio: float32 [B, n >= 4 * hop] -> representation: float32 [B, 2, F, (n - 4 * hop) // hop + 1]."""
        config = self.config
        frames = sliding_window_view(audio, config.fft_size, axis=-1)[:, :: config.hop]
        spectrum = scipy.fft.rfft(frames * self._window, axis=-1)[..., : config.bins]
        planes = np.stack([spectrum.real, spectrum.imag], axis=1).astype(np.float32, copy=False)
        planes *= np.float32(config.beta_rescale) * _magnitude_power(planes, config.alpha_rescale - 1.0)
        return np.ascontiguousarray(planes.swapaxes(2, 3))

    def synthesise(self, representation: Float) -> Float:
        """representation: float32 [B, 2, F, T] -> audio: float32 [B, (T + 3) * hop] in [-1, 1]."""
        return np.clip(self.overlap_add(self.synthesise_frames(representation)), -1.0, 1.0)

    def synthesise_frames(self, representation: Float) -> Float:
        """representation: float32 [B, 2, F, T] -> windowed frames [B, T, 4 * hop], ready to be added up."""
        config, exponent = self.config, 1.0 / self.config.alpha_rescale
        planes = np.ascontiguousarray(representation.swapaxes(2, 3))
        planes *= np.float32(config.beta_rescale**-exponent) * _magnitude_power(planes, exponent - 1.0)
        batch, _, frames, bins = planes.shape
        spectrum = np.zeros((batch, frames, bins + 1), np.complex64)  # with the Nyquist bin, which is 0
        spectrum.real[..., :bins], spectrum.imag[..., :bins] = planes[:, 0], planes[:, 1]
        audio: Float = scipy.fft.irfft(spectrum, config.fft_size, axis=-1)
        audio *= self._window / np.float32(1.5)  # four squared windows, a quarter apart, add up to 1.5
        return audio

    def overlap_add(self, frames: Float) -> Float:
        """frames: float32 [B, T, 4 * hop] -> [B, (T + 3) * hop]: every frame is the sum of four quarters, one hop apart."""
        batch, count, size = frames.shape
        quarters = frames.reshape(batch, count, 4, size // 4)
        audio = np.zeros((batch, count + 3, size // 4), np.float32)
        for quarter in range(4):
            audio[:, quarter : quarter + count] += quarters[:, :, quarter]
        return audio.reshape(batch, -1)


def _magnitude_power(planes: Float, exponent: float) -> Float:
    """|X| ** exponent of planes [B, 2, T, F] -> [B, 1, T, F]; 0 where X is 0."""
    square = planes[:, :1] ** 2 + planes[:, 1:] ** 2
    with np.errstate(divide="ignore"):
        power: Float = square ** np.float32(exponent / 2.0)
    power[square == 0.0] = 0.0
    return power
