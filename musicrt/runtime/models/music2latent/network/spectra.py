"""Front end and synthesis as convolutions, for engines on GPUs; on the host an FFT does it (`spectrum.py`, SPEC section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.networks.fourier import FourierBasis


class Frontend(nn.Module):
    """Waveform -> companded spectrum as a strided convolution with the windowed Fourier basis (SPEC section 3)."""

    def __init__(self, config: Config, basis: FourierBasis) -> None:
        super().__init__()
        self.hop, self.bins = config.hop, config.bins
        self.alpha, self.beta = config.alpha_rescale, config.beta_rescale
        self.basis = basis

    def forward(self, audio: Tensor) -> Tensor:
        """audio: float32 [B, (T + 3) * hop] -> representation [B, 2, F, T]."""
        spectrum = F.conv1d(audio[:, None], self.basis(), stride=self.hop)
        spectrum = spectrum.reshape(audio.shape[0], 2, self.bins, -1)
        return spectrum * (self.beta * _power(spectrum, self.alpha - 1.0))


class Synthesis(nn.Module):
    """Companded spectrum -> waveform: inverse Fourier basis and overlap-add as one transposed convolution (SPEC section 3)."""

    def __init__(self, config: Config, basis: FourierBasis) -> None:
        super().__init__()
        self.hop, self.alpha, self.beta = config.hop, config.alpha_rescale, config.beta_rescale
        # Half a spectrum stands for both halves: every bin but 0 counts twice. The squared windows add up to 1.5.
        weight = torch.full((config.bins, 1), 2.0 / (1.5 * config.fft_size) * self.beta ** -(1.0 / self.alpha))
        weight[0] /= 2.0
        self.weight, self.basis = nn.Parameter(weight), basis

    def forward(self, representation: Tensor) -> Tensor:
        """representation: float32 [B, 2, F, T] -> audio [B, (T + 3) * hop] in [-1, 1]."""
        spectrum = representation * (_power(representation, 1.0 / self.alpha - 1.0) * self.weight)
        return F.conv_transpose1d(spectrum.flatten(1, 2), self.basis(), stride=self.hop)[:, 0].clamp(-1.0, 1.0)


def _power(planes: Tensor, exponent: float) -> Tensor:
    """|X| ** exponent of the complex number in axis 1; finite at X = 0, where it is multiplied by 0."""
    return planes.square().sum(1, keepdim=True).clamp_min(1e-38) ** (exponent / 2.0)
