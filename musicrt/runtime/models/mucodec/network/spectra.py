"""The mel spectrograms as graphs, for engines; on the host an FFT makes them (`mel.py`, SPEC sections 3.2 and 4.7)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import MEL_HOP, MUQ_HOP
from musicrt.runtime.models.mucodec.mel import MAGNITUDE_FLOOR, POWER_FLOOR, REFLECTION, muq_filters, prompt_filters
from musicrt.runtime.models.mucodec.muq_config import MelStatistics


class MuqFrontEnd(nn.Module):
    """MuQ's spectrogram as convolution and matrix product. `analysis`: `dft_basis`, which both share."""

    def __init__(self, statistics: MelStatistics, analysis: nn.Parameter) -> None:
        super().__init__()
        self.analysis = analysis
        self.filters = nn.Parameter(torch.from_numpy(muq_filters()))
        self.mean, self.deviation = statistics.melspec_2048_mean, statistics.melspec_2048_std

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float32 [B, 960C], 24 kHz -> normalised mel [B, 128, 4C]."""
        real, imaginary = transform(waveform, self.analysis, MUQ_HOP)
        power = (real.square() + imaginary.square())[:, :, :-1].transpose(1, 2) @ self.filters
        decibels = torch.log(power.clamp(min=POWER_FLOOR)) * (10.0 / math.log(10.0))
        return ((decibels - self.mean) / self.deviation).transpose(1, 2)


class PromptFrontEnd(nn.Module):
    """The prompt's spectrogram, likewise."""

    def __init__(self, analysis: nn.Parameter) -> None:
        super().__init__()
        self.analysis = analysis
        self.filters = nn.Parameter(torch.from_numpy(prompt_filters()))

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float32 [B, 480H], 48 kHz -> log-mel [B, H + 1, 256]."""
        real, imaginary = transform(waveform.clamp(-1.0, 1.0), self.analysis, MEL_HOP)
        magnitudes = (real.square() + imaginary.square()).sqrt().transpose(1, 2) @ self.filters
        return magnitudes.clamp(min=MAGNITUDE_FLOOR).log()


def transform(waveform: Tensor, analysis: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """Centred frames, transformed: float32 [B, n] -> real and imaginary parts [B, 1025, 1 + n // hop]."""
    mirrored = F.pad(waveform[:, None], (REFLECTION, REFLECTION), mode="reflect")
    real, imaginary = F.conv1d(mirrored, analysis[:, None], stride=hop).chunk(2, dim=1)
    return real, imaginary
