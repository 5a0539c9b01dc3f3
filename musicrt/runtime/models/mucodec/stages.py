"""MuCodec cut into the stages that are exported.

`split` takes the networks and gives one module per stage. The results are those of the official networks up to rounding; what
changed is where the work is done:

- of MuQ only the layers below the tapped one are there; batch norms and weight norms are folded, codebooks normalised once;
- the estimator's patch embedding is cut in two: what in-context latents, condition and positions give is a stage of its own, run once
  per window; what the timestep gives is one too, run once per schedule;
- nearest-neighbour upsampling and its convolution become one small convolution per output phase, transposed convolutions plain ones;
  the latents' scale moves into the first convolution of the decoder, and into what the encoder gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, Config
from musicrt.runtime.models.mucodec.mel import dft_basis
from musicrt.runtime.models.mucodec.network.checkpoint import Networks, fit_config, load_networks
from musicrt.runtime.models.mucodec.network.muq import Muq, rotation_rates
from musicrt.runtime.models.mucodec.network.quantizer import Conditioner, NormFeat, ResidualQuantizer
from musicrt.runtime.models.mucodec.network.spectra import MuqFrontEnd, PromptFrontEnd
from musicrt.runtime.models.mucodec.network.vae import FirstStage
from musicrt.runtime.models.mucodec.network.velocity import Context, Timesteps, Velocity
from musicrt.runtime.networks.hifigan import HifiGan

__all__ = ["build_stages", "fit_config", "load_stages", "split"]

_LOGVAR_RANGE = (-30.0, 20.0)
_SMALLEST_DEVIATION = 1e-12


class TappedMuq(nn.Module):
    """`Muq`, folded, with its rotations."""

    def __init__(self, network: Muq, config: Config) -> None:
        super().__init__()
        network.fold()
        self.conv, self.layers = network.conv, network.conformer.layers
        self.rates = nn.Parameter(rotation_rates(config))

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, 128, 4C] -> hidden state [B, C, D]."""
        x = self.conv(mel)
        angles = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)[:, None] * self.rates
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


class Quantizer(nn.Module):
    """Hidden state -> codes: the nearest entries by angle, the first where several are as near."""

    def __init__(self, network: ResidualQuantizer) -> None:
        super().__init__()
        books = network.books
        self.projections = nn.ParameterList([book.in_proj.weight() for book in books])
        self.biases = nn.ParameterList([book.in_proj.bias.data for book in books])
        self.directions = nn.ParameterList([F.normalize(book.entries) for book in books])
        # What a codebook stands for, for those that leave a residual to another.
        self.entries = nn.ParameterList([book.entries for book in books[:-1]])
        self.returns = nn.ParameterList([book.out_proj.weight() for book in books[:-1]])
        self.return_biases = nn.ParameterList([book.out_proj.bias.data for book in books[:-1]])

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float32 [B, C, D] -> codes int64 [B, n, C]. The length of a projection moves no maximum; only its angle counts."""
        residual, codes = hidden, list[Tensor]()
        for index, directions in enumerate(self.directions):
            projected = F.linear(residual, self.projections[index], self.biases[index])
            codes.append(F.linear(projected, directions).argmax(-1))
            if index < len(self.entries):
                found = F.embedding(codes[-1], self.entries[index])
                residual = residual - F.linear(found, self.returns[index], self.return_biases[index])
        return torch.stack(codes, dim=1)


class Dequantizer(nn.Module):
    """Codes of the first codebooks -> the sum of what they stand for."""

    def __init__(self, network: ResidualQuantizer) -> None:
        super().__init__()
        books = network.books
        self.entries = nn.Parameter(torch.cat([book.entries for book in books]))
        self.weight = nn.Parameter(torch.stack([book.out_proj.weight().T for book in books]))
        self.biases = nn.Parameter(torch.stack([book.out_proj.bias.data for book in books]))
        self.size = len(self.entries) // len(books)

    def forward(self, codes: Tensor) -> Tensor:
        """codes: int64 [B, K, C] -> float32 [B, D, C]."""
        count = codes.shape[1]
        first = torch.arange(count, device=codes.device)[:, None] * self.size
        found = F.embedding(codes + first, self.entries).transpose(1, 2).flatten(2)
        summed = found @ self.weight[:count].flatten(0, 1) + self.biases[:count].sum(0)
        return summed.transpose(1, 2)


class Condition(nn.Module):
    """Quantised features of two codes -> condition of a latent frame."""

    def __init__(self, network: Conditioner) -> None:
        super().__init__()
        self.projection = network.cond_muencoder_emb
        self.nothing = nn.Parameter(network.zero_cond_embedding1.data.reshape(LATENT_CHANNELS, 1, LATENT_BINS))

    def forward(self, quantised: Tensor, known: Tensor) -> Tensor:
        """quantised: float32 [B, D, 2T]; known: float32 [B, T], 1 or 0 -> [B, 32, T, 32]."""
        pairs = self.projection(quantised.transpose(1, 2)).unflatten(1, (-1, 2)).flatten(2)
        condition = pairs.unflatten(2, (LATENT_CHANNELS, LATENT_BINS)).transpose(1, 2)
        keep = known[:, None, :, None]
        return condition * keep + self.nothing * (1.0 - keep)


class Normalisation(nn.Module):
    """Latents normalised for the sampler, and the way back, with the statistics as they are in the checkpoint (SPEC section 4.4)."""

    def __init__(self, network: NormFeat) -> None:
        super().__init__()
        mean, deviation = network.mean_and_deviation()
        self.mean, self.deviation = nn.Parameter(mean), nn.Parameter(deviation)
        self.inverse = nn.Parameter(1.0 / deviation.clamp(min=_SMALLEST_DEVIATION))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents: float32 [B, 32, T, 32] -> projected, returned, both of the input."""
        return (latents - self.mean) * self.inverse, latents * self.deviation + self.mean


class VaeDecoder(nn.Module):
    """Latents of a channel -> spectrogram."""

    def __init__(self, network: FirstStage, scale: Tensor) -> None:
        super().__init__()
        self.convolution, self.decoder = network.post_quant_conv, network.decoder
        self.convolution.weight = nn.Parameter(self.convolution.weight.data / scale)
        self.decoder.fold_upsampling()

    def forward(self, latents: Tensor) -> Tensor:
        """latents: float32 [B, 16, T, 32] -> log-mel [B, 8T, 256]."""
        return self.decoder(self.convolution(latents))[:, 0]


class Vocoder(nn.Module):
    """Spectrogram -> waveform."""

    def __init__(self, network: HifiGan) -> None:
        super().__init__()
        network.fold_upsampling()
        self.network = network

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, M, 256] -> [B, 480M + 16] in (-1, 1), 48 kHz."""
        return self.network(mel)


class VaeEncoder(nn.Module):
    """Spectrogram -> distribution of a channel's latents, scaled: latents = mean + deviation * noise."""

    def __init__(self, network: FirstStage, scale: Tensor) -> None:
        super().__init__()
        self.encoder, self.convolution = network.encoder, network.quant_conv
        self.scale = nn.Parameter(scale.reshape(1))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """mel: float32 [B, M, 256] -> mean, deviation [B, 16, M // 8, 32]."""
        mean, logvar = self.convolution(self.encoder(mel[:, None])).chunk(2, dim=1)
        return mean * self.scale, torch.exp(0.5 * logvar.clamp(*_LOGVAR_RANGE)) * self.scale


def split(networks: Networks) -> dict[str, nn.Module]:
    """One module per stage, made of the layers of the networks, which must not be used any more."""
    analysis = nn.Parameter(torch.from_numpy(dft_basis()))
    scale = networks.scale.scale_factor
    return {
        "frontend": MuqFrontEnd(networks.config.muq_stat, analysis),
        "muq": TappedMuq(networks.muq, networks.config),
        "quantizer": Quantizer(networks.quantizer),
        "dequantizer": Dequantizer(networks.quantizer),
        "condition": Condition(networks.conditioner),
        "normfeat": Normalisation(networks.normfeat),
        "context": Context(networks.estimator),
        "timesteps": Timesteps(networks.estimator),
        "estimator": Velocity(networks.estimator),
        "vae": VaeDecoder(networks.first_stage, scale),
        "vocoder": Vocoder(networks.first_stage.vocoder),
        "prompt-frontend": PromptFrontEnd(analysis),
        "vae-encoder": VaeEncoder(networks.first_stage, scale),
    }


def build_stages(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Untrained stages."""
    return split(Networks.build(Config.from_mapping(config)))


def load_stages(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages with the weights of a checkpoint: the contents of each official file, by file name. Raises CheckpointError."""
    stages = split(load_networks(files, config))
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}
