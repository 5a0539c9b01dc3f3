"""Music2Latent in torch: the official checkpoint's modules, written from SPEC sections 4 to 7.

Attribute names are the checkpoint's keys, so the state dict loads without renaming. `stages.py` cuts this
network into the pieces that are exported.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.music2latent.config import Config


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


class Gain(nn.Module):
    """One learned factor per frequency."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Encoder(nn.Module):
    """Representation -> latents and features (SPEC section 5)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        self.conv_inp = nn.Conv2d(2, channels[0], 3, padding=1)
        self.gain = Gain(config.bins)
        layers: list[nn.Module] = []
        width = channels[0]
        for level, count in enumerate(config.layers_list_encoder):
            heads = config.heads if config.attention_list_encoder[level] else 0
            for _ in range(count):
                layers.append(ResBlock(width, channels[level], heads=heads))
                width = channels[level]
            if level < len(channels) - 1:
                layers.append(Downsample(width, width, bool(config.freq_downsample_list[level]), normalize=True))
        self.down_layers = nn.ModuleList(layers)
        self.prenorm_1d_to_2d = group_norm(width)
        base = config.bottleneck_base_channels
        self.bottleneck_layers = nn.ModuleList(
            [nn.Conv1d(config.feature_channels, base, 1), *(ResBlock(base, base, rank=1) for _ in range(config.num_bottleneck_layers))]
        )
        self.norm_out = group_norm(base)
        self.conv_out = nn.Conv1d(base, config.bottleneck_channels, 1)

    def forward(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """representation: float32 [B, 2, F, 8L] -> latents [B, 64, L] in (-1, 1), features [B, 8192, L]."""
        x = self.gain(self.conv_inp(representation))
        for layer in self.down_layers:
            x = layer(x)
        features = self.prenorm_1d_to_2d(x).flatten(1, 2)
        x = features
        for layer in self.bottleneck_layers:
            x = layer(x)
        return torch.tanh(self.conv_out(F.silu(self.norm_out(x)))), features


class LatentDecoder(nn.Module):
    """Latents -> pyramid of feature maps, finest first (SPEC section 6)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, base = config.channels, config.bottleneck_base_channels
        self.coarse_bins = config.coarse_bins
        self.conv_inp = nn.Conv1d(config.bottleneck_channels, base, 1)
        self.bottleneck_layers = nn.ModuleList([ResBlock(base, base, rank=1) for _ in range(config.num_bottleneck_layers)])
        self.conv_out_bottleneck = nn.Conv1d(base, config.feature_channels, 1)
        layers: list[nn.Module] = []
        for level in reversed(range(len(channels))):
            heads = config.heads if config.attention_list_encoder[level] else 0
            layers += [ResBlock(channels[level], channels[level], heads=heads) for _ in range(config.layers_list_encoder[level])]
            if level:
                layers.append(Upsample(channels[level], channels[level - 1], bool(config.freq_downsample_list[level - 1])))
        self.up_layers = nn.ModuleList(layers)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """latents: float32 [B, 64, L], raw -> the maps of SPEC section 2's table, level 0 first."""
        x = self.conv_inp(latents)
        for layer in self.bottleneck_layers:
            x = layer(x)
        # Row f * C + c: not the inverse of the encoder's flattening (SPEC section 6).
        x = self.conv_out_bottleneck(x).unflatten(1, (self.coarse_bins, -1)).transpose(1, 2)
        pyramid = []
        for layer in self.up_layers:
            if not isinstance(layer, ResBlock):
                pyramid.append(x)
            x = layer(x)
        return [*pyramid, x][::-1]


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
