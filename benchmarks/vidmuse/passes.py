"""The language model for one half of guidance, as two passes would run it (needs torch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.graphs import export_like_stage
from benchmarks.vidmuse.baselines import read_networks
from benchmarks.vidmuse.workload import Workload
from musicrt.runtime.layers import attend_cached
from musicrt.runtime.models.vidmuse.network.language import Language, LanguageLayer
from musicrt.runtime.models.vidmuse.network.transformer import embed_positions
from musicrt.runtime.models.vidmuse.spec import BATCH, cross_names
from musicrt.runtime.spec import StageSpec


class OnePass(nn.Module):
    """Tokens -> logits of one half; otherwise as the stage `lm`."""

    def __init__(self, language: Language) -> None:
        super().__init__()
        self.language = language

    def forward(self, tokens: Tensor, length: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """tokens: int64 [B, K, S], length: int64 [1], then two tensors of the condition for each layer, and two caches for each.

        -> logits float32 [1, B, K, S, card], and the caches.
        """
        whole, (batch, _, columns) = self.language, tokens.shape
        first = torch.arange(whole.codebooks, device=tokens.device)[:, None] * whole.rows
        places = length + torch.arange(columns, device=tokens.device)
        x = F.embedding(tokens + first, whole.table).sum(1) + embed_positions(places.to(torch.float32), whole.periods)
        x, last = x.flatten(0, 1), (length + (columns - 1)).to(torch.int32).expand(batch)
        count, caches = len(whole.layers), list[Tensor]()
        for index, layer in enumerate(whole.layers):
            pair, start = rest[2 * index : 2 * index + 2], 2 * count + 2 * index
            x, *changed = _run_layer(cast(LanguageLayer, layer), x, last, pair, *rest[start : start + 2])
            caches += changed
        logits = F.linear(whole.norm(x), whole.heads).reshape(1, batch, columns, whole.codebooks, -1)
        return logits.transpose(2, 3), *caches


def _run_layer(
    given: LanguageLayer, x: Tensor, last: Tensor, condition: tuple[Tensor, ...], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    layer, (key, value), width = given.layer, condition, given.heads * given.head_width
    projected = F.linear(layer.norm1(x), layer.self_attn.in_proj_weight).reshape(keys.shape[0], -1, 3 * width)
    y, keys, values = attend_cached(projected, keys, values, last)
    x = x + layer.self_attn.out_proj(y.reshape(-1, width))
    query = F.linear(layer.norm_cross(x), given.query).reshape(keys.shape[0], -1, given.heads, given.head_width).transpose(1, 2)
    seen = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
    x = x + given.back(seen.transpose(1, 2).reshape(-1, width))
    return x + layer.feed_forward(x), keys, values


def describe_pass(work: Workload) -> StageSpec:
    """The stage `lm` without the half that has no condition."""
    stage, names = work.spec.stage("lm"), cross_names(work.config.layers)
    inputs = [tensor for tensor in stage.inputs if tensor.name in ("tokens", "length", *names)]
    return replace(
        stage,
        inputs=tuple(inputs),
        outputs=tuple(replace(tensor, shape=(1, *tensor.shape[1:])) for tensor in stage.outputs),
        states=tuple(replace(tensor, shape=(BATCH, *tensor.shape[1:])) for tensor in stage.states),
    )


def build_pass(work: Workload, checkpoint: Path) -> OnePass:
    """The network of one half with the weights of a checkpoint. Raises CheckpointError."""
    return OnePass(Language(read_networks(checkpoint, work.config).muse, work.config)).eval().requires_grad_(False)


def export_pass(work: Workload, checkpoint: Path, folder: Path) -> Path:
    """Its graph. Raises CheckpointError."""
    return export_like_stage(describe_pass(work), build_pass(work, checkpoint), folder)
