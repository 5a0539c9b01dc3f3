"""The language model, layer by layer (SPEC section 6)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.language_config import TransformerConfig


class Attention(nn.Module):
    """The weights of an attention: rows of queries, keys and values in one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.dim, config.dim))
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)


class Layer(nn.Module):
    """A layer. Its attentions are computed by who has their caches; `feed_forward` is what comes last."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.dim, config.dim * config.hidden_scale
        self.self_attn = Attention(config)
        self.linear1 = nn.Linear(width, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(config)
        self.norm_cross = nn.LayerNorm(width)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x: [..., d] -> the same shape."""
        return self.linear2(F.gelu(self.linear1(self.norm2(x))))


class Transformer(nn.Module):
    """The layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])

    def __iter__(self) -> Iterator[Layer]:
        return (layer for layer in self.layers if isinstance(layer, Layer))


def position_periods(width: int, longest: float = 10000.0) -> Tensor:
    """What places are divided by: float32 [width / 2]."""
    half = width // 2
    return torch.full((), longest) ** (torch.arange(half, dtype=torch.float32) / (half - 1))


def embed_positions(places: Tensor, periods: Tensor) -> Tensor:
    """Cosines, then sines: places float32 [n], periods float32 [d / 2] -> [n, d]."""
    phases = places[:, None] / periods
    return torch.cat([phases.cos(), phases.sin()], dim=1)
