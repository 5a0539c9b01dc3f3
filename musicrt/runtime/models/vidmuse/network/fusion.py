"""The cross-attention between a window's frames and those of the whole video (SPEC section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import VISUAL_WIDTH

HEADS = 3


class CrossFusion(nn.Module):
    """Each local token looks at all global ones. The norms come last."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(VISUAL_WIDTH, VISUAL_WIDTH)
        self.key = nn.Linear(VISUAL_WIDTH, VISUAL_WIDTH)
        self.value = nn.Linear(VISUAL_WIDTH, VISUAL_WIDTH)
        self.final_linear = nn.Linear(VISUAL_WIDTH, VISUAL_WIDTH)
        self.norm1 = nn.LayerNorm(VISUAL_WIDTH)
        self.norm2 = nn.LayerNorm(VISUAL_WIDTH)

    def forward(self, local: Tensor, whole: Tensor) -> Tensor:
        """local: float32 [B, n, 768], whole: [B, m, 768] -> [B, n, 768]."""
        query, key, value = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, x in ((self.query, local), (self.key, whole), (self.value, whole))
        )
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        y = self.norm1(seen + local)
        return self.norm2(self.final_linear(y) + y)
