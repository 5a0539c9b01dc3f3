"""What training makes small: distances of companded spectra, and of spectra of the waveform at several resolutions (needs torch)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.music2latent.config import Config

SIZES = (256, 512, 1024, 2048, 4096)
FLOOR = 3e-2
"""Added to magnitudes before the logarithm: what is below, of a full scale of a few hundred, is as good as silence."""


class Front(nn.Module):
    """Companded spectrum and synthesis as fast transforms with gradients (SPEC section 3)."""

    window: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.fft_size))

    def analyse(self, audio: Tensor) -> Tensor:
        """audio: float32 [B, (T + 3) * hop] -> representation [B, 2, F, T]."""
        config = self.config
        spectrum = torch.stft(audio, config.fft_size, config.hop, window=self.window, center=False, return_complex=True)
        planes = torch.view_as_real(spectrum[:, : config.bins]).permute(0, 3, 1, 2)
        return planes * config.beta_rescale * magnitude(planes, 1e-9) ** (config.alpha_rescale - 1.0)

    def synthesise(self, representation: Tensor) -> Tensor:
        """representation: [B, 2, F, T] -> audio [B, (T + 3) * hop], not clipped."""
        config, exponent = self.config, 1.0 / self.config.alpha_rescale
        planes = representation * (config.beta_rescale**-exponent * magnitude(representation, 1e-4) ** (exponent - 1.0))
        spectrum = torch.complex(planes[:, 0], planes[:, 1]).transpose(1, 2)
        frames = torch.fft.irfft(F.pad(spectrum, (0, 1)), config.fft_size) * (self.window / 1.5)
        size = (planes.shape[3] + 3) * config.hop
        return F.fold(frames.transpose(1, 2), (1, size), (1, config.fft_size), stride=(1, config.hop)).flatten(1)


def magnitude(planes: Tensor, least: float) -> Tensor:
    """|X| of [B, 2, F, T] -> [B, 1, F, T], at least `least`, so that its gradient is finite."""
    return planes.square().sum(1, keepdim=True).clamp_min(least**2).sqrt()


def spectral_loss(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of the complex companded spectra, and of their magnitudes; both relative to the truth, item by item."""
    size = magnitude(truth, 1e-4)
    scale = size.mean((1, 2, 3)) + 0.02
    complex_distance = magnitude(guess - truth, 1e-4).mean((1, 2, 3)) / scale
    return complex_distance.mean(), ((magnitude(guess, 1e-4) - size).abs().mean((1, 2, 3)) / scale).mean()


def waveform_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Spectral convergence and distance of logarithms, over windows of `SIZES`. guess, truth: [B, n]."""
    total = torch.zeros(())
    for size in SIZES:
        window = torch.hann_window(size)
        ours, theirs = (
            torch.stft(audio, size, size // 4, window=window, center=False, return_complex=True).abs() for audio in (guess, truth)
        )
        power = theirs.square().sum((1, 2)).clamp_min(1.0).sqrt()
        convergence = (ours - theirs).square().sum((1, 2)).clamp_min(1e-8).sqrt() / power
        total = total + convergence.mean() + ((ours + FLOOR).log() - (theirs + FLOOR).log()).abs().mean()
    return total / len(SIZES)
