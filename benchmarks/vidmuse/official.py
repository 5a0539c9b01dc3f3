"""The networks as the official code runs them in torch (SPEC sections 5 to 9), made of the layers that the stages are cut from.

What is thrown away is computed, and nothing but the caches of self-attention is kept from step to step. Attention is torch's own, as
officially in the language model; elsewhere it is written out there. Weight norms are folded, unlike officially.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME, VISUAL_WIDTH, Config
from musicrt.runtime.models.vidmuse.network.codec import Codec
from musicrt.runtime.models.vidmuse.network.muse import Muse
from musicrt.runtime.models.vidmuse.network.seanet import Recurrence, run_layers
from musicrt.runtime.models.vidmuse.network.transformer import Layer, embed_positions, position_periods
from musicrt.runtime.models.vidmuse.stages import Dequantizer, Quantizer

Cache = tuple[Tensor, Tensor]
"""Keys and values of a layer, float32 [rows, heads, columns, head width]."""


class OfficialCondition(nn.Module):
    """Pixels of both halves -> condition of both."""

    def __init__(self, network: Muse) -> None:
        super().__init__()
        self.network = network

    def forward(self, local: Tensor, whole: Tensor) -> Tensor:
        """local: float32 [2, n, 3, 224, 224], whole: [2, m, 3, 224, 224], black frames in their second rows -> [2, 50 n, d]."""
        network = self.network
        local = network.local_temporal_transformer(self._see(local) + network.local_pos_embedding)
        whole = network.global_temporal_transformer(self._see(whole) + network.global_pos_embedding)
        seen = network.multi_head_cross_attention(local.reshape(2, -1, VISUAL_WIDTH), whole.reshape(2, -1, VISUAL_WIDTH))
        video_emb: Tensor = network.visual_feature_proj(seen)
        return video_emb

    def _see(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.network.visual_encoder_model.vision_model(pixels.flatten(0, 1))
        return hidden


class OfficialLanguage(nn.Module):
    """Tokens -> logits. Keys and values of the condition are computed in every call, and caches grow by concatenation."""

    def __init__(self, network: Muse, config: Config) -> None:
        super().__init__()
        self.network, self.heads = network, config.heads
        self.periods = nn.Parameter(position_periods(config.width))

    def forward(self, tokens: Tensor, video_emb: Tensor, caches: list[Cache]) -> tuple[Tensor, list[Cache]]:
        """tokens: int64 [rows, K, S]; video_emb: float32 [rows, n, d]; caches: of every layer, or none of any.

        -> logits float32 [rows, K, S, card], and the caches with what is new.
        """
        network, columns = self.network, tokens.shape[2]
        x = torch.stack([table(tokens[:, row]) for row, table in enumerate(network.emb)]).sum(0)
        known = caches[0][0].shape[2] if caches else 0
        x = x + embed_positions(torch.arange(known, known + columns, dtype=torch.float32), self.periods)
        grown: list[Cache] = []
        for index, layer in enumerate(network.transformer):
            y, cache = self._attend(layer, layer.norm1(x), caches[index] if caches else None)
            x = x + y
            x = x + self._look(layer, layer.norm_cross(x), video_emb)
            x = x + layer.feed_forward(x)
            grown.append(cache)
        x = network.out_norm(x)
        return torch.stack([head(x) for head in network.linears], dim=1), grown

    def _attend(self, layer: Layer, x: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        query, key, value = (self._split(part) for part in F.linear(x, layer.self_attn.in_proj_weight).chunk(3, dim=2))
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=x.shape[1] > 1)
        return layer.self_attn.out_proj(y.transpose(1, 2).flatten(2)), (key, value)

    def _look(self, layer: Layer, x: Tensor, video_emb: Tensor) -> Tensor:
        weights = layer.cross_attention.in_proj_weight.chunk(3)
        query, key, value = (self._split(F.linear(of, weight)) for of, weight in zip((x, video_emb, video_emb), weights, strict=True))
        y = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = layer.cross_attention.out_proj(y.transpose(1, 2).flatten(2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class OfficialEncoder(nn.Module):
    """Waveform -> codes, the whole in one go."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        self.network, self.quantizer = network, Quantizer(network)

    def forward(self, audio: Tensor) -> Tensor:
        """audio: float32 [B, 1, n] -> int64 [B, K, ceil(n / 640)]."""
        before, recurrence, behind = self.network.encoder.parts()
        codes: Tensor = self.quantizer(run_layers(behind, recur(recurrence, run_layers(before, audio))))
        return codes


class OfficialDecoder(nn.Module):
    """Codes -> waveform, the whole in one go, with transposed convolutions."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        self.network, self.dequantizer = network, Dequantizer(network)

    def forward(self, codes: Tensor) -> Tensor:
        """codes: int64 [B, K, T] -> float32 [B, 1, 640 T]."""
        before, recurrence, behind = self.network.decoder.parts()
        return run_layers(behind, recur(recurrence, run_layers(before, self.dequantizer(codes))))


def recur(layers: Recurrence, x: Tensor) -> Tensor:
    """float32 [B, C, T] through torch's LSTM, and around it."""
    y: Tensor = layers.lstm(x.permute(2, 0, 1))[0]
    return x + y.permute(1, 2, 0)


def repeat_null(embedding: Tensor, tokens: int) -> Tensor:
    """The condition of one black frame float32 [1, 50, d] as that of as many as make up so many tokens: [1, tokens, d]."""
    return embedding.repeat(1, -(-tokens // TOKENS_PER_FRAME), 1)[:, :tokens]
