"""The estimator: a transformer over patches of the latents, modulated by the timestep (SPEC section 4.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, PATCH, Config, EstimatorConfig

FREQUENCIES = 256
"""Of the time embedding."""
_HIDDEN = 4
"""Width of the feed-forward's middle, in widths."""


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, n, w] -> the same shape."""
        query, key, value = (project(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Gelu(nn.Module):
    """A projection and a GELU, the form with tanh."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gelu(width, _HIDDEN * width), nn.Identity(), nn.Linear(_HIDDEN * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Attention and feed-forward; the timestep shifts and scales what each sees, and gates what it gives."""

    def __init__(self, sizes: EstimatorConfig) -> None:
        super().__init__()
        self.eps = sizes.norm_eps
        self.scale_shift_table = nn.Parameter(torch.zeros(6, sizes.width))
        self.attn1 = Attention(sizes.width, sizes.num_attention_heads)
        self.ff = FeedForward(sizes.width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: float32 [B, n, w]; modulation: [B, 6, w], the same for all layers -> [B, n, w]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation)[:, :, None].unbind(1)
        x = x + gate1 * self.attn1(normalise(x, self.eps) * (1.0 + scale1) + shift1)
        return x + gate2 * self.ff(normalise(x, self.eps) * (1.0 + scale2) + shift2)


class PatchEmbedding(nn.Module):
    """Squares of 2 x 2 latents, each one projected: x, in-context latents and condition side by side."""

    def __init__(self, sizes: EstimatorConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(sizes.in_channels, sizes.width, PATCH, stride=PATCH)


class TimeEmbedding(nn.Module):
    """Two layers on sines and cosines of the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, waves: Tensor) -> Tensor:
        """waves: float32 [S, 512], cosines first -> [S, w]."""
        return self.linear_2(F.silu(self.linear_1(waves)))


class Combination(nn.Module):
    """The part of diffusers' combined embedding that is used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimeEmbedding(width)


class AdaLayerNorm(nn.Module):
    """Timestep -> what all layers add to their tables."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = Combination(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """waves: float32 [S, 512], sines and cosines of the timesteps -> modulation [S, 6w], embedding [S, w]."""
        embedding = self.emb.timestep_embedder(waves)
        return self.linear(F.silu(embedding)), embedding


class Estimator(nn.Module):
    """The whole transformer. Keys: `cfm_wrapper.estimator.` of the main file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.transformer2D
        self.eps = sizes.norm_eps
        self.scale_shift_table = nn.Parameter(torch.zeros(2, sizes.width))
        self.pos_embed = PatchEmbedding(sizes)
        self.transformer_blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.num_layers)])
        self.proj_out = nn.Linear(sizes.width, PATCH * PATCH * sizes.out_channels)
        self.adaln_single = AdaLayerNorm(sizes.width)


def normalise(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def unpatch(tokens: Tensor) -> Tensor:
    """Features (row, column, channel) of each token: float32 [B, 16R, 128] -> [B, 32, 2R, 32]."""
    grid = tokens.reshape(tokens.shape[0], -1, LATENT_BINS // PATCH, PATCH, PATCH, LATENT_CHANNELS)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def time_rates() -> Tensor:
    """Radians per unit of time, which goes from 0 to 1: float32 [256]."""
    return 1000.0 * torch.exp(torch.arange(FREQUENCIES, dtype=torch.float32) * _log_rate(FREQUENCIES))


def position_rates(width: int) -> Tensor:
    """Radians per unit of distance: float32 [w / 4], for either axis."""
    return torch.exp(torch.arange(width // 4, dtype=torch.float32) * _log_rate(width // 4))


def _log_rate(count: int) -> float:
    """Logarithm of the ratio of neighbours among `count` rates from 1 down to nearly 1/10000."""
    return -math.log(10000.0) / count
