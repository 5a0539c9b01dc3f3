"""All that `state_dict.bin` holds of use: the image tower, what makes a condition of its frames, and the language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME, VISUAL_WIDTH, Config
from musicrt.runtime.models.vidmuse.network.clip import ImageTower
from musicrt.runtime.models.vidmuse.network.fusion import CrossFusion
from musicrt.runtime.models.vidmuse.network.temporal import TemporalTransformer
from musicrt.runtime.models.vidmuse.network.transformer import Transformer


class Muse(nn.Module):
    """The parts under their official names; `stages` puts them together."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        language = config.lm.transformer_lm
        self.local_pos_embedding = nn.Parameter(torch.empty(1, TOKENS_PER_FRAME, VISUAL_WIDTH))
        self.global_pos_embedding = nn.Parameter(torch.empty(1, TOKENS_PER_FRAME, VISUAL_WIDTH))
        self.visual_encoder_model = ImageTower(config.clip_vision)
        self.local_temporal_transformer = TemporalTransformer(language)
        self.global_temporal_transformer = TemporalTransformer(language)
        self.multi_head_cross_attention = CrossFusion()
        self.visual_feature_proj = nn.Linear(VISUAL_WIDTH, config.width)
        self.emb = nn.ModuleList([nn.Embedding(config.card + 1, config.width) for _ in range(config.codebooks)])
        self.transformer = Transformer(language)
        self.out_norm = nn.LayerNorm(config.width)
        self.linears = nn.ModuleList([nn.Linear(config.width, config.card, bias=False) for _ in range(config.codebooks)])

    def tables(self) -> list[Tensor]:
        """Embeddings of each codebook's tokens, float32 [card + 1, d]."""
        return [table.weight.data for table in self.emb if isinstance(table, nn.Embedding)]

    def heads(self) -> list[Tensor]:
        """What makes logits for each codebook, float32 [card, d]."""
        return [head.weight.data for head in self.linears if isinstance(head, nn.Linear)]
