"""The decoder of the variational autoencoder: latent -> mel spectrogram (SPEC section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, Config, DdConfig
from musicrt.runtime.models.semanticodec.network.layers import Upsample, group_norm


class ResnetBlock(nn.Module):
    """norm-swish-conv twice around a residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, t, f] -> [B, C', t, f]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Attention of one head over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, t, f] -> the same shape."""
        y = self.norm(x)
        query, key, value = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(y[:, 0].transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """Blocks of one resolution, and the way to the next finer one where there is one."""

    def __init__(self, inputs: int, outputs: int, count: int, finer: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResnetBlock(outputs if index else inputs, outputs) for index in range(count)])
        if finer:
            self.upsample = finer

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    """Blocks around the attention, at the resolution of the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Decoder(nn.Module):
    """The convolutional network behind `post_quant_conv`."""

    def __init__(self, sizes: DdConfig) -> None:
        super().__init__()
        channels = [sizes.ch * times for times in sizes.ch_mult]
        self.conv_in = nn.Conv2d(LATENT_SHAPE[0], channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList(
            Level(inputs, outputs, sizes.num_res_blocks + 1, Upsample(outputs) if index else None)
            for index, (inputs, outputs) in enumerate(zip([*channels[1:], channels[-1]], channels, strict=True))
        )
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: float32 [B, 8, t, f] -> [B, 1, 4t, 4f]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class FirstStage(nn.Module):
    """The used part of the official autoencoder. Keys: `first_stage_model.` of the decoder's file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(LATENT_SHAPE[0], LATENT_SHAPE[0], 1)
        self.decoder = Decoder(config.first_stage_config.ddconfig)

    def forward(self, z: Tensor) -> Tensor:
        """z: float32 [B, 8, t, f] -> [B, 1, 4t, 4f]."""
        return self.decoder(self.post_quant_conv(z))


class VaeDecoder(nn.Module):
    """Latent of the diffusion -> mel spectrogram. Keys: those of the decoder's file, without prefix."""

    scale_factor: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.ones(()))
        self.first_stage_model = FirstStage(config)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: float32 [B, 8, 256, 16] -> mel float32 [B, 1024, 64], natural logarithm. Other lengths are taken, too."""
        return self.first_stage_model((1.0 / self.scale_factor) * latent)[:, 0]
