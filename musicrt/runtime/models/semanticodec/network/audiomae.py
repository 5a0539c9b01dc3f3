"""AudioMAE: the vision transformer that looks at the mel spectrogram (SPEC section 2.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.semanticodec.config import MEL_BINS, PATCH, SEGMENT_FRAMES, AudioMaeConfig, Config

GRID = (SEGMENT_FRAMES // PATCH, MEL_BINS // PATCH)
"""Patches of a segment along time and frequency."""
_NEIGHBOURS = {1: (1, 1), 2: (1, 2), 4: (2, 2)}  # patches along time and frequency that make one token, by stack factor


class PatchEmbedding(nn.Module):
    """A segment in square patches, each one projected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, channels, PATCH, stride=PATCH)

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, 1024, 128] -> [B, 512, P], time-major."""
        return self.proj(mel[:, None]).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over all patches."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, n, P] -> the same shape."""
        query, key, value = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=2))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One layer of the transformer, norms first."""

    def __init__(self, config: AudioMaeConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Perceptron(width, config.mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AudioMae(nn.Module):
    """The encoder half of AudioMAE without masking. Keys: `audiomae.model.` of the encoder's file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.audiomae
        self.stack = config.stack
        self.contextual_depth = sizes.contextual_depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID[0] * GRID[1], sizes.embed_dim))
        self.patch_embed = PatchEmbedding(sizes.embed_dim)
        self.blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.depth)])
        self.norm = nn.LayerNorm(sizes.embed_dim, eps=sizes.norm_eps)

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, 1024, 128], normalised -> representation [B, T, D]."""
        return stack_patches(self.features(mel)[:, 1:], self.stack)

    def features(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, 1024, 128] -> the mean of the last blocks' normed outputs [B, 513, P], the class token first."""
        x = self.patch_embed(mel) + self.pos_embed[:, 1:]
        first = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)
        looks: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index > self.contextual_depth:
                looks.append(self.norm(x))
        return torch.stack(looks).mean(0)


def stack_patches(patches: Tensor, stack: int) -> Tensor:
    """Neighbouring patches side by side: float32 [B, 512, P], time-major -> [B, 512 / stack, P * stack]. stack: 1, 2 or 4."""
    times, bins = _NEIGHBOURS[stack]
    grid = patches.reshape(-1, GRID[0] // times, times, GRID[1] // bins, bins, patches.shape[2])
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)
