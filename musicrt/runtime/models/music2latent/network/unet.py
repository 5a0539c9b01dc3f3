"""The U-Net with encoder and decoder inside it, as one network under the checkpoint's names (SPEC section 7)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.autoencoder import Encoder, LatentDecoder
from musicrt.runtime.models.music2latent.network.blocks import Downsample, ResBlock, Upsample, group_norm


class SigmaEmbedding(nn.Module):
    """Positional embedding of ln(sigma) / 4, sines first (SPEC section 7.1)."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        steps = torch.arange(half, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(steps * (-math.log(10000.0) / (half - 1))), persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        """sigma: float32 [n] -> [n, D]."""
        angles = (torch.log(sigma) / 4.0)[:, None] * self.frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with silu between them; keys .0, .2, .4."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class UNet(nn.Module):
    """The whole network under the checkpoint's names (SPEC section 7)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, cond = config.channels, config.cond_channels
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = LatentDecoder(config)
        self.emb = SigmaEmbedding(cond)
        self.emb_proj = _perceptron(cond, cond, cond)
        self.scale_inp = _perceptron(cond, cond, cond, config.bins)
        self.scale_out = _perceptron(cond, cond, cond, config.bins)
        self.conv_inp = nn.Conv2d(2, channels[0], 3, padding=1)
        last = len(channels) - 1
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level, width in enumerate(channels):
            down += self._blocks(level)
            if level < last:
                down.append(Downsample(width, channels[level + 1], bool(config.freq_downsample_list[level])))
        for level in reversed(range(len(channels))):
            up += self._blocks(level)
            if level:
                up.append(Upsample(channels[level], channels[level - 1], bool(config.freq_downsample_list[level - 1])))
        self.down_layers = nn.ModuleList(down)
        self.up_layers = nn.ModuleList(up)
        self.conv_decoded = nn.Conv2d(channels[0], channels[0], 1)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 2, 3, padding=1)

    def _blocks(self, level: int) -> list[nn.Module]:
        config, width = self.config, self.config.channels[level]
        heads = config.heads if config.attention_list[level] else 0
        blocks: list[nn.Module] = []
        for _ in range(config.layers_list[level]):
            blocks += [nn.Conv2d(width, width, 1), ResBlock(width, width, cond=config.cond_channels, heads=heads)]
        return blocks

    def forward(self, latents: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """One evaluation as the official code does it, pyramid included: the eager baseline of the benchmarks.

        latents: float32 [B, 64, L], raw; x: [B, 2, F, 8L], noisy; sigma: [B] -> clean representation [B, 2, F, 8L].
        """
        config = self.config
        embedding = self.emb(sigma)
        time_emb = F.silu(self.emb_proj(embedding))
        pyramid = self.decoder(latents)
        data2 = config.sigma_data**2
        c_skip = data2 / ((sigma - config.sigma_min) ** 2 + data2)
        c_out = config.sigma_data * (sigma - config.sigma_min) / torch.sqrt(data2 + sigma**2)
        c_in = 1.0 / torch.sqrt(sigma**2 + data2)

        h = self.conv_inp(c_in[:, None, None, None] * x)
        h = (1.0 + self.scale_inp(embedding))[:, None, :, None] * h
        skips: list[Tensor] = []
        level, contribution = 0, h
        for layer in self.down_layers:
            if isinstance(layer, nn.Conv2d):
                contribution = layer(pyramid[level])
            elif isinstance(layer, ResBlock):
                h = layer((h + contribution) / math.sqrt(2.0), layer.proj_emb(time_emb))
                skips.append(h)
            else:
                h, level = layer(h), level + 1
        for layer in self.up_layers:
            if isinstance(layer, nn.Conv2d):
                contribution = layer(pyramid[level])
            elif isinstance(layer, ResBlock):
                h = layer((h + skips.pop() + contribution) / math.sqrt(3.0), layer.proj_emb(time_emb))
            else:
                h, level = layer(h), level - 1
        h = (h + self.conv_decoded(pyramid[0])) / math.sqrt(2.0)
        h = (1.0 + self.scale_out(embedding))[:, None, :, None] * F.silu(self.norm_out(h))
        return c_skip[:, None, None, None] * x + c_out[:, None, None, None] * self.conv_out(h)
