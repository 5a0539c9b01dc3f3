"""Layers of the denoiser (SPEC section 3.4)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.networks.autoencoder import group_norm


class Downsample(nn.Module):
    """Half as many rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class CrossAttention(nn.Module):
    """Attention of positions to a context, which may be the positions themselves."""

    def __init__(self, channels: int, head_channels: int, context_dim: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context: float32 [B, T, C'] -> key, value [B, T, C]."""
        return self.to_k(context), self.to_v(context)

    def attend(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x: float32 [B, n, C]; key, value as `project` gives them -> [B, n, C]."""
        y = F.scaled_dot_product_attention(self._split(self.to_q(x)), self._split(key), self._split(value))
        return self.to_out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.head_channels).transpose(1, 2)


class GatedProjection(nn.Module):
    """Half of a projection, gated by the GELU of the other half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.proj(x).chunk(2, dim=-1)
        return y * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedProjection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context, feed-forward; norms first."""

    def __init__(self, channels: int, head_channels: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, head_channels, channels)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, head_channels, context_dim)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def attend_self(self, x: Tensor) -> Tensor:
        """x: float32 [B, n, C] -> the same shape."""
        y = self.norm1(x)
        return x + self.attn1.attend(y, *self.attn1.project(y))

    def attend_context(self, x: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
        """x: float32 [B, n, C] behind the self-attention; context: key and value, None: of x itself -> the same shape."""
        y = self.norm2(x)
        x = x + self.attn2.attend(y, *(context or self.attn2.project(y)))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over all positions, around a residual."""

    def __init__(self, channels: int, head_channels: int, context_dim: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, head_channels, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    @property
    def block(self) -> TransformerBlock:
        return cast(TransformerBlock, self.transformer_blocks[0])

    def attend_self(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, t, f] -> positions behind the self-attention [B, t * f, C]."""
        return self.block.attend_self(self.proj_in(self.norm(x)).flatten(2).transpose(1, 2))

    def attend_context(self, x: Tensor, positions: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
        """x: that of `attend_self`, positions: what it gave; context: key and value, None: of the positions -> [B, C, t, f]."""
        y = self.block.attend_context(positions, context)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class PositionTransformer(SpatialTransformer):
    """One whose second attention is to the positions, too."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__(channels, head_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, t, f] -> the same shape."""
        return self.attend_context(x, self.attend_self(x), None)


class ContextTransformer(SpatialTransformer):
    """One whose second attention is to the tokens. It is run in its two halves: between them, the rows of guidance part."""
