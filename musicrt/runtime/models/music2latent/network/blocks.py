"""What all parts of the network are made of: attention, residual blocks, changes of resolution (SPEC section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GN(C): at most 32 groups; its statistics run over all frequencies and frames of the item."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-5)


class SelfAttention(nn.Module):
    """Attention over frequency, one sequence per item and frame (SPEC section 4)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.mha = nn.MultiheadAttention(channels, heads, batch_first=True)  # holds the keys; its forward is not used

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, f, t] -> the same shape."""
        batch, channels, bins, frames = x.shape
        y = self.norm(x).permute(0, 3, 2, 1)
        qkv = F.linear(y, self.mha.in_proj_weight, self.mha.in_proj_bias)
        qkv = qkv.reshape(batch * frames, bins, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = y.transpose(1, 2).reshape(batch, frames, bins, channels)
        return x + self.mha.out_proj(y).permute(0, 3, 2, 1)


class ResBlock(nn.Module):
    """norm-silu-conv twice around a residual, optionally followed by attention (SPEC section 4)."""

    def __init__(self, inputs: int, outputs: int, *, rank: int = 2, cond: int = 0, heads: int = 0) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv1d
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(inputs, outputs, 3, padding=1)
        if cond:
            self.proj_emb = nn.Linear(cond, outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.res_conv = conv(inputs, outputs, 1)
        if heads:
            self.att = SelfAttention(outputs, heads)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x: float32 [B, C, ...]; shift: float32 [B, C'] = proj_emb(time_emb), added between the convolutions."""
        h = self.conv1(F.silu(self.norm1(x)))
        if shift is not None:
            h = h + shift[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        y = h + (self.res_conv(x) if hasattr(self, "res_conv") else x)
        return self.att(y) if hasattr(self, "att") else y


class Downsample(nn.Module):
    """Strided convolution: frequency / 4, or frequency and time / 2."""

    def __init__(self, inputs: int, outputs: int, frequency_only: bool, *, normalize: bool = False) -> None:
        super().__init__()
        if normalize:
            self.norm = group_norm(inputs)
        if frequency_only:
            self.c = nn.Conv2d(inputs, outputs, (5, 1), stride=(4, 1), padding=(2, 0))
        else:
            self.c = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(x) if hasattr(self, "norm") else x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling (frequency x 4, or frequency and time x 2) and a convolution."""

    def __init__(self, inputs: int, outputs: int, frequency_only: bool) -> None:
        super().__init__()
        self.scale = (4, 1) if frequency_only else (2, 2)
        kernel, padding = ((5, 1), (2, 0)) if frequency_only else ((3, 3), (1, 1))
        self.c = nn.Conv2d(inputs, outputs, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.interpolate(x, scale_factor=self.scale, mode="nearest"))
