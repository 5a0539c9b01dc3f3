"""The convolutional autoencoder of latent diffusion: residual blocks on levels of half the resolution each.

In time and frequency alike; x: float32 [B, C, t, f] everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import PhaseUpsample


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


class Upsample(nn.Module):
    """Nearest neighbour, twice as many rows and columns, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half as many rows and columns, rounded down: a convolution that is padded at the ends only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


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
        """x: [B, C, t, f] -> [B, C', t, f]."""
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
        """x: [B, C, t, f] -> the same shape."""
        y = self.norm(x)
        # Contiguous, or torch makes a matrix of all scores: 1 GB for 16384 positions.
        query, key, value = (conv(y).flatten(2).transpose(1, 2).contiguous()[:, None] for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(y[:, 0].transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """Blocks of one resolution, and the way to the next one where there is one."""

    def __init__(self, inputs: int, outputs: int, count: int, **onward: nn.Module) -> None:
        """onward: nothing, `upsample` or `downsample`, under which its weights are stored."""
        super().__init__()
        self.block = nn.ModuleList([ResnetBlock(outputs if index else inputs, outputs) for index in range(count)])
        for name, layer in onward.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("upsample", "downsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    """Blocks around the attention, at the resolution of the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image -> what its latent's distribution is made of, at 1/2 the resolution for every level but the first."""

    def __init__(self, channels: Sequence[int], blocks: int, outputs: int) -> None:
        """channels: of each level, finest first; blocks: on each."""
        super().__init__()
        inputs = [channels[0], *channels[:-1]]
        self.conv_in = nn.Conv2d(1, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(before, width, blocks, **({"downsample": Downsample(width)} if index + 1 < len(channels) else {}))
            for index, (before, width) in enumerate(zip(inputs, channels, strict=True))
        )
        self.mid = Middle(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 1, t, f] -> [B, outputs, t / 2^levels, f / 2^levels], each rounded down."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent -> image, at twice the resolution for every level but the first."""

    def __init__(self, inputs: int, channels: Sequence[int], blocks: int) -> None:
        """inputs: channels of the latent; channels: of each level, finest first; blocks: on each."""
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList(
            Level(before, width, blocks, **({"upsample": Upsample(width)} if index else {}))
            for index, (before, width) in enumerate(zip([*channels[1:], channels[-1]], channels, strict=True))
        )
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, inputs, t, f] -> [B, 1, t * 2^levels, f * 2^levels]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def fold_upsampling(self) -> None:
        """Make one small convolution per output phase of each upsampling and its convolution, which costs less than half."""
        for level in self.up:
            if isinstance(upsample := getattr(level, "upsample", None), Upsample):
                level.upsample = PhaseUpsample(upsample.conv, (2, 2))
