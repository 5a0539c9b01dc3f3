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

from musicrt.runtime.layers import Lstm
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.network.checkpoint import Networks, fit_config, load_networks
from musicrt.runtime.models.vidmuse.network.codec import Codec
from musicrt.runtime.models.vidmuse.network.language import CrossKeys, Language
from musicrt.runtime.models.vidmuse.network.muse import Muse
from musicrt.runtime.models.vidmuse.network.seanet import PaddedConv, run_layers
from musicrt.runtime.models.vidmuse.network.temporal import TemporalTransformer

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
