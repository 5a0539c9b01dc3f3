"""The vocoder HiFi-GAN: a generator whose weight norm is already folded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import PhaseTranspose

DILATIONS = (1, 3, 5)
_SLOPE = 0.1  # of all leaky units but the last, which has torch's default
_LAST_SLOPE = 0.01


class ResidualStack(nn.Module):
    """Three residual pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList([_same_conv(channels, kernel, dilation) for dilation in DILATIONS])
        self.convs2 = nn.ModuleList([_same_conv(channels, kernel, 1) for _ in DILATIONS])

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return x


class HifiGan(nn.Module):
    """Mel spectrogram -> waveform. Each stage upsamples, halves the channels, and takes the mean of its residual stacks."""

    def __init__(self, bins: int, width: int, rates: Sequence[int], kernels: Sequence[int], stack_kernels: Sequence[int]) -> None:
        """bins: of the spectrogram; width: channels before the first stage; rates, kernels: of the stages' upsampling."""
        super().__init__()
        self.conv_pre = nn.Conv1d(bins, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            # Where kernel - rate is odd (16 and 5) this padding leaves one sample more than rate * n.
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, stride=rate, padding=(kernel - rate) // 2))
            width //= 2
            self.resblocks.extend([ResidualStack(width, size) for size in stack_kernels])
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, frames, bins], natural logarithm -> waveform float32 [B, samples] in (-1, 1)."""
        x = self.conv_pre(mel.transpose(1, 2))
        count = len(self.resblocks) // len(self.ups)
        for index, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, _SLOPE))
            stacks = self.resblocks[count * index : count * (index + 1)]
            x = reduce(torch.add, [stack(x) for stack in stacks]) / count
        return torch.tanh(self.conv_post(F.leaky_relu(x, _LAST_SLOPE)))[:, 0]

    def fold_upsampling(self) -> None:
        """Make plain convolutions of the transposed ones."""
        for index, up in enumerate(self.ups):
            if isinstance(up, nn.ConvTranspose1d):
                self.ups[index] = PhaseTranspose(up)


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    """A convolution that keeps the length."""
    return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
