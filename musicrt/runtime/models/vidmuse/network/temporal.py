"""The temporal transformers: in spite of the name they look at the 50 tokens of one frame at a time (SPEC section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import VISUAL_WIDTH
from musicrt.runtime.models.vidmuse.language_config import TransformerConfig


class Attention(nn.Module):
    """Self-attention of as many heads as the language model has, each of a width of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.dim_head
        self.to_qkv = nn.Linear(VISUAL_WIDTH, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, VISUAL_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """x: [F, n, 768] -> the same shape."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers around an exact GELU, at the places that they have in the checkpoint."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = VISUAL_WIDTH * config.hidden_scale
        self.net = nn.Sequential(nn.Linear(VISUAL_WIDTH, width), nn.GELU(), nn.Identity(), nn.Linear(width, VISUAL_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Normalised(nn.Module):
    """A layer behind a norm."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISUAL_WIDTH)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class TemporalTransformer(nn.Module):
    """Hidden states of frames, with their positions -> hidden states."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Normalised(Attention(config)), Normalised(FeedForward(config))]) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(VISUAL_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [F, 50, 768] -> the same shape."""
        for layer in self.layers:
            for part in layer.children():
                x = x + part(x)
        return self.norm(x)
