"""The encoder, and the decoder from latents to the maps that the U-Net takes (SPEC sections 5 and 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.blocks import Downsample, ResBlock, Upsample, group_norm


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
