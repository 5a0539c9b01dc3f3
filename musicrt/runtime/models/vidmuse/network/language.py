"""The language model as stages: its condition apart, a step with it and without in one pass, caches in and out (SPEC section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import attend_cached
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.network.muse import Muse
from musicrt.runtime.models.vidmuse.network.transformer import Layer, embed_positions, position_periods


class CrossKeys(nn.Module):
    """Condition -> keys and values of all layers."""

    def __init__(self, network: Muse, config: Config) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.weights = nn.ParameterList([nn.Parameter(_rows_of(layer, 1, 3)) for layer in network.transformer])

    def forward(self, video_emb: Tensor) -> tuple[Tensor, ...]:
        """video_emb: float32 [B, n, d] -> key, value of the first layer, …: [B, H, n, W]."""
        made: list[Tensor] = []
        for weight in self.weights:
            both = F.linear(video_emb, weight).reshape(*video_emb.shape[:2], 2, self.heads, self.head_width)
            made += both.permute(2, 0, 3, 1, 4).unbind()
        return tuple(made)


class LanguageLayer(nn.Module):
    """A layer with its caches."""

    def __init__(self, layer: Layer, config: Config) -> None:
        super().__init__()
        self.layer, self.heads, self.head_width = layer, config.heads, config.head_width
        self.query = nn.Parameter(_rows_of(layer, 0, 1) * config.head_width**-0.5)
        self.back = layer.cross_attention.out_proj
        del layer.cross_attention

    def forward(
        self, x: Tensor, last: Tensor, conditions: tuple[Tensor, ...], keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: float32 [2 * B * S, d] -> the same shape, and the caches. conditions: key and value with the condition, and without."""
        layer, width = self.layer, self.heads * self.head_width
        projected = F.linear(layer.norm1(x), layer.self_attn.in_proj_weight).reshape(keys.shape[0], -1, 3 * width)
        y, keys, values = attend_cached(projected, keys, values, last)
        x = x + layer.self_attn.out_proj(y.reshape(-1, width))
        shape = (2, keys.shape[0] // 2, -1, self.heads, self.head_width)
        queries = F.linear(layer.norm_cross(x), self.query).reshape(shape).transpose(2, 3)
        seen = torch.stack([_look(queries[0], *conditions[:2]), _look(queries[1], *conditions[2:])])
        x = x + self.back(seen.transpose(2, 3).reshape(-1, width))
        return x + layer.feed_forward(x), keys, values


class Language(nn.Module):
    """Tokens -> logits."""

    def __init__(self, network: Muse, config: Config) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.cat(network.tables()))
        self.heads = nn.Parameter(torch.cat(network.heads()))
        self.periods = nn.Parameter(position_periods(config.width))
        self.layers = nn.ModuleList([LanguageLayer(layer, config) for layer in network.transformer])
        self.norm = network.out_norm
        self.codebooks, self.rows = config.codebooks, config.card + 1

    def forward(self, tokens: Tensor, length: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """tokens: int64 [B, K, S], length: int64 [1], then four tensors of conditions and, behind those of all layers, two caches for each.

        -> logits float32 [2, B, K, S, card], with the condition and without, and the caches.
        """
        batch, _, columns = tokens.shape
        first = torch.arange(self.codebooks, device=tokens.device)[:, None] * self.rows
        places = length + torch.arange(columns, device=tokens.device)
        x = F.embedding(tokens + first, self.table).sum(1) + embed_positions(places.to(torch.float32), self.periods)
        x = torch.cat([x, x]).flatten(0, 1)  # rows, because a product of a matrix with rows is one operator in a graph
        last = (length + (columns - 1)).to(torch.int32).expand(2 * batch)
        count, caches = len(self.layers), list[Tensor]()
        for index, layer in enumerate(self.layers):
            state = rest[4 * count + 2 * index : 4 * count + 2 * index + 2]
            x, *changed = layer(x, last, rest[4 * index : 4 * index + 4], *state)
            caches += changed
        logits = F.linear(self.norm(x), self.heads).reshape(2, batch, columns, self.codebooks, -1)
        return logits.transpose(2, 3), *caches


def _rows_of(layer: Layer, start: int, stop: int) -> Tensor:
    """Thirds of the rows of a cross-attention: of queries, keys, values."""
    weight = layer.cross_attention.in_proj_weight.data
    width = weight.shape[1]
    return weight[start * width : stop * width]


def _look(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, its scale in the queries: [B, H, S, W], [B or 1, H, n, W] -> [B, H, S, W].

    In plain products, which ONNX Runtime computes at the speed of memory where there is one query; its fused attention does not.
    """
    return torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
