"""EnCodec: encoder, residual quantizer, decoder, under the keys of the hub (SPEC section 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import CodecConfig
from musicrt.runtime.models.vidmuse.network.seanet import Decoder, Encoder


class Codebook(nn.Module):
    """What each code stands for."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(size, width))


class QuantizerLayer(nn.Module):
    """A codebook under the name that it has in the checkpoint."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.codebook = Codebook(size, width)


class ResidualQuantizer(nn.Module):
    """The codebooks, each for what those before it left."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([QuantizerLayer(config.codebook_size, config.codebook_dim) for _ in range(config.codebooks)])

    def books(self) -> list[Tensor]:
        """What the codes stand for, float32 [size, L] of each codebook."""
        return [layer.codebook.embed.data for layer in self.layers if isinstance(layer, QuantizerLayer)]


class Codec(nn.Module):
    """The parts; `stages` puts them together."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = ResidualQuantizer(config)
