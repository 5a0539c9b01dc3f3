"""The estimator as stages: what is told of a window, what a timestep makes of all layers, and the step itself (SPEC section 4.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import bias_of
from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, PATCH
from musicrt.runtime.models.mucodec.network.estimator import Estimator, normalise, position_rates, time_rates, unpatch

_EXTENT = 32.0  # what the places of rows and columns go up to, however many there are (SPEC section 4.6)


class Context(nn.Module):
    """The share of the tokens that does not change from step to step."""

    def __init__(self, network: Estimator) -> None:
        super().__init__()
        convolution = network.pos_embed.proj
        self.weight = nn.Parameter(convolution.weight.data[:, LATENT_CHANNELS:].contiguous())
        self.bias = nn.Parameter(bias_of(convolution))
        self.rates = nn.Parameter(position_rates(len(self.bias)))
        columns = torch.arange(0.0, _EXTENT, _EXTENT * PATCH / LATENT_BINS)[:, None] * self.rates.data
        self.columns = nn.Parameter(torch.cat([columns.sin(), columns.cos()], dim=1))

    def forward(self, incontext: Tensor, condition: Tensor) -> Tensor:
        """incontext, condition: float32 [B, 32, 2R, 32] -> [B, 16R, w]."""
        patches = F.conv2d(torch.cat([incontext, condition], dim=1), self.weight, self.bias, stride=PATCH)
        return (patches.permute(0, 2, 3, 1) + self.positions(patches.shape[2])).flatten(1, 2)

    def positions(self, rows: int) -> Tensor:
        """Sines and cosines of column and row, which are scaled to the length: float32 [R, 16, w]."""
        places = torch.arange(rows, dtype=torch.float32, device=self.rates.device) * _EXTENT / rows
        angles = places[:, None] * self.rates
        along = torch.cat([angles.sin(), angles.cos()], dim=1)[:, None]
        return torch.cat([self.columns.expand(rows, -1, -1), along.expand(-1, len(self.columns), -1)], dim=2)


class Timesteps(nn.Module):
    """Timesteps -> what all layers share."""

    def __init__(self, network: Estimator) -> None:
        super().__init__()
        self.network = network.adaln_single
        self.rates = nn.Parameter(time_rates())

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep: float32 [S], from 0 to 1 -> modulation [S, 6w], embedding [S, w]."""
        angles = timestep[:, None] * self.rates
        return self.network(torch.cat([angles.cos(), angles.sin()], dim=1))


class Velocity(nn.Module):
    """One evaluation of the transformer, its context and timestep prepared."""

    def __init__(self, network: Estimator) -> None:
        super().__init__()
        self.weight = nn.Parameter(network.pos_embed.proj.weight.data[:, :LATENT_CHANNELS].contiguous())
        self.blocks, self.table, self.projection = network.transformer_blocks, network.scale_shift_table, network.proj_out
        self.eps = network.eps

    def forward(self, context: Tensor, x: Tensor, modulation: Tensor, embedding: Tensor) -> Tensor:
        """context [G, B, 16R, w], x [B, 32, 2R, 32], modulation [B, 6w], embedding [B, w]: float32 -> [G, B, 32, 2R, 32]."""
        rows = context.shape[0]
        tokens = F.conv2d(x, self.weight, stride=PATCH).flatten(2).transpose(1, 2)
        hidden = (tokens + context).flatten(0, 1)
        shared = modulation.reshape(modulation.shape[0], 6, -1).repeat(rows, 1, 1)
        for block in self.blocks:
            hidden = block(hidden, shared)
        shift, scale = (self.table + embedding[:, None]).repeat(rows, 1, 1)[:, :, None].unbind(1)
        velocity = unpatch(self.projection(normalise(hidden, self.eps) * (1.0 + scale) + shift))
        return velocity.reshape(rows, *x.shape)
