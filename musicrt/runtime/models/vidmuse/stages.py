"""VidMuse cut into the stages that are exported.

`split` takes the networks and gives one module per stage. The results are those of the official networks up to rounding; what changed is
where the work is done:

- the keys and values of cross-attention are a stage of their own, `cross`, run once per window; the official code computes them at every
  step, in every layer, for every token of the condition;
- `lm` makes a step with the condition and without it in one pass. Where there is no condition, its keys and values are those of one black
  frame, whatever the length of the window;
- the embedding tables of all codebooks lie in one, the heads in one matrix; the scale of cross-attention is in the weights of its queries;
- weight norms are folded, transposed convolutions plain ones, and the LSTM of the decoder takes up where a former call left off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import Lstm, attend_cached
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.network.checkpoint import Networks, fit_config, load_networks
from musicrt.runtime.models.vidmuse.network.codec import Codec
from musicrt.runtime.models.vidmuse.network.muse import Muse
from musicrt.runtime.models.vidmuse.network.seanet import PaddedConv, run_layers
from musicrt.runtime.models.vidmuse.network.temporal import TemporalTransformer
from musicrt.runtime.models.vidmuse.network.transformer import Layer, embed_positions, position_periods

__all__ = ["build_stages", "fit_config", "load_stages", "split"]


class Temporal(nn.Module):
    """A temporal transformer with its positions."""

    def __init__(self, network: TemporalTransformer, positions: nn.Parameter) -> None:
        super().__init__()
        self.network, self.positions = network, positions

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float32 [F, 50, 768] -> the same shape."""
        return self.network(hidden + self.positions)


class Fusion(nn.Module):
    """Both sequences of frames -> condition."""

    def __init__(self, network: Muse) -> None:
        super().__init__()
        self.attention, self.projection = network.multi_head_cross_attention, network.visual_feature_proj

    def forward(self, local_hidden: Tensor, global_hidden: Tensor) -> Tensor:
        """local_hidden: float32 [B, n, 768], global_hidden: [B, m, 768] -> [B, n, d]."""
        return self.projection(self.attention(local_hidden, global_hidden))


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


class CodecEncoder(nn.Module):
    """Waveform -> embedding."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        before, recurrence, behind = network.encoder.parts()
        self.before, self.recurrence, self.behind = nn.ModuleList(before), nn.ModuleList(recurrence.folded()), nn.ModuleList(behind)

    def forward(self, audio: Tensor) -> Tensor:
        """audio: float32 [B, 1, n] -> [B, L, ceil(n / 640)]."""
        x = run_layers(self.before, audio)
        y = run_layers(self.recurrence, x.transpose(1, 2)).transpose(1, 2)
        return run_layers(self.behind, x + y)


class Quantizer(nn.Module):
    """Embedding -> codes: the nearest entries, the first where several are as near."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        books = network.quantizer.books()
        self.books = nn.ParameterList(books)
        self.squares = nn.ParameterList([book.square().sum(1) for book in books])

    def forward(self, embedding: Tensor) -> Tensor:
        """embedding: float32 [B, L, T] -> codes int64 [B, K, T]."""
        residual, codes = embedding.transpose(1, 2), list[Tensor]()
        for book, squares in zip(self.books, self.squares, strict=True):
            square = residual.square().sum(2, keepdim=True)
            nearness = -(square - 2.0 * F.linear(residual, book) + squares)
            codes.append(nearness.argmax(-1))
            residual = residual - book[codes[-1]]
        return torch.stack(codes, dim=1)


class Dequantizer(nn.Module):
    """Codes -> the sum of what they stand for."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        books = network.quantizer.books()
        self.table = nn.Parameter(torch.cat(books))
        self.count, self.rows = len(books), len(books[0])

    def forward(self, codes: Tensor) -> Tensor:
        """codes: int64 [B, K, T] -> float32 [B, L, T]."""
        first = torch.arange(self.count, device=codes.device)[:, None] * self.rows
        return F.embedding(codes + first, self.table).sum(1).transpose(1, 2)


class DecoderRecurrence(nn.Module):
    """Latents with their neighbours -> features. Goes on from a state."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        (first,), recurrence, _ = network.decoder.parts()
        self.conv = cast(PaddedConv, first).conv
        self.recurrence = nn.ModuleList(recurrence.folded())

    def forward(self, latent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """latent: float32 [B, L, T + 6], h, c: [layers, B, C] -> features [B, C, T], and the state behind them."""
        x = self.conv(latent)
        y, states = x.transpose(1, 2), list[tuple[Tensor, Tensor]]()
        for index, layer in enumerate(self.recurrence):
            y, *state = cast(Lstm, layer).go_on(y, h[index], c[index])
            states.append((state[0], state[1]))
        return x + y.transpose(1, 2), torch.stack([h for h, _ in states]), torch.stack([c for _, c in states])


class Synthesis(nn.Module):
    """Features -> waveform."""

    def __init__(self, network: Codec) -> None:
        super().__init__()
        network.decoder.fold()
        self.layers = nn.ModuleList(network.decoder.parts()[2])

    def forward(self, features: Tensor) -> Tensor:
        """features: float32 [B, C, T] -> [B, 1, 640 T], 32 kHz."""
        return run_layers(self.layers, features)


def split(networks: Networks) -> dict[str, nn.Module]:
    """One module per stage, made of the layers of the networks, which must not be used any more."""
    config, muse, codec = networks.config, networks.muse, networks.codec
    return {
        "visual": muse.visual_encoder_model.vision_model,
        "local": Temporal(muse.local_temporal_transformer, muse.local_pos_embedding),
        "global": Temporal(muse.global_temporal_transformer, muse.global_pos_embedding),
        "fuse": Fusion(muse),
        "cross": CrossKeys(muse, config),
        "lm": Language(muse, config),
        "codec-encoder": CodecEncoder(codec),
        "quantizer": Quantizer(codec),
        "dequantizer": Dequantizer(codec),
        "recurrence": DecoderRecurrence(codec),
        "synthesis": Synthesis(codec),
    }


def build_stages(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Untrained stages."""
    return split(Networks.build(Config.from_mapping(config)))


def load_stages(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages with the weights of a checkpoint: the contents of each official file, by file name. Raises CheckpointError."""
    stages = split(load_networks(files, config))
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}
