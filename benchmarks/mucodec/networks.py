"""The networks as the official code runs them in torch (SPEC sections 3.3 to 4.9), made of those that the stages are cut from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.models.mucodec.config import LATENT_BINS, PATCH, Config
from musicrt.runtime.models.mucodec.network.checkpoint import Networks, load_networks
from musicrt.runtime.models.mucodec.network.estimator import Estimator, normalise, unpatch
from musicrt.runtime.models.mucodec.network.muq import NORM_EPS, BatchNorm, ConvBlock, ConvModule, Muq, rotation_rates
from musicrt.runtime.models.mucodec.network.vae import FirstStage
from musicrt.runtime.models.mucodec.network.velocity import Timesteps
from musicrt.runtime.models.mucodec.spec import CHECKPOINT
from musicrt.runtime.models.mucodec.stages import Condition, Dequantizer, Quantizer


class OfficialMuq(nn.Module):
    """All layers of a conformer, its batch norms as they are. The prediction head, which is small, is left out."""

    def __init__(self, network: Muq, config: Config) -> None:
        super().__init__()
        for module in list(network.modules()):
            if isinstance(module, ConvBlock):
                module.conv1 = cast(nn.Conv2d, _behind(module.conv1, module.bn1, nn.BatchNorm2d))
                module.conv2 = cast(nn.Conv2d, _behind(module.conv2, module.bn2, nn.BatchNorm2d))
                module.conv3 = cast(nn.Conv2d, _behind(module.conv3, module.bn3, nn.BatchNorm2d))
            elif isinstance(module, ConvModule):
                module.depthwise_conv = cast(nn.Conv1d, _behind(module.depthwise_conv, module.batch_norm, nn.BatchNorm1d))
        self.network, self.tapped = network, config.layers
        self.rates = nn.Parameter(rotation_rates(config))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """mel: float32 [B, 128, 4C] -> hidden states behind the tapped and behind the last layer, [B, C, D] both."""
        x = tapped = self.network.conv(mel)
        angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * self.rates
        for index, layer in enumerate(self.network.conformer.layers):
            x = layer(x, angles.cos(), angles.sin())
            if index + 1 == self.tapped:
                tapped = x
        return tapped, x


class OfficialCondition(nn.Module):
    """Codes -> condition; there is nothing that is not known."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.dequantizer, self.condition = Dequantizer(networks.quantizer), Condition(networks.conditioner)

    def forward(self, codes: Tensor) -> Tensor:
        """codes: int64 [B, n, 2T] -> float32 [B, 32, T, 32]."""
        condition: Tensor = self.condition(self.dequantizer(codes), torch.ones(1, 1))
        return condition


class OfficialEstimator(nn.Module):
    """One evaluation, with all that depends on the time and on places. Attention is torch's own, as in diffusers."""

    def __init__(self, network: Estimator) -> None:
        super().__init__()
        self.network, self.timesteps = network, Timesteps(network)

    def forward(self, channels: Tensor, timestep: Tensor) -> Tensor:
        """channels: float32 [B, 96, T, 32]; timestep: [B] -> velocity [B, 32, T, 32]."""
        network = self.network
        patches: Tensor = network.pos_embed.proj(channels)
        hidden = patches.flatten(2).transpose(1, 2) + positions(patches.shape[2], patches.shape[1])
        modulation, embedding = self.timesteps(timestep)
        for block in network.transformer_blocks:
            hidden = block(hidden, modulation.unflatten(1, (6, -1)))
        shift, scale = (network.scale_shift_table + embedding[:, None])[:, :, None].unbind(1)
        return unpatch(network.proj_out(normalise(hidden, network.eps) * (1.0 + scale) + shift))


class OfficialVae(nn.Module):
    """Latents -> spectrogram, with upsampling and scale as they are."""

    def __init__(self, network: FirstStage, scale: Tensor) -> None:
        super().__init__()
        self.first, self.decoder, self.scale = network.post_quant_conv, network.decoder, nn.Parameter(scale)

    def forward(self, latents: Tensor) -> Tensor:
        """latents: float32 [B, 16, T, 32] -> log-mel [B, 8T, 256]."""
        mel: Tensor = self.decoder(self.first(latents / self.scale))
        return mel[:, 0]


class WithScores(nn.Module):
    """A network whose attention makes the matrix of all scores, as written out officially."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return self.network(*inputs)


def positions(rows: int, width: int) -> Tensor:
    """What each patch has added, in float64, then rounded: float32 [16 rows, width] (SPEC section 4.6)."""
    rates = torch.exp(torch.arange(width // 4, dtype=torch.float64) * (-math.log(10000.0) / (width // 4)))
    columns = torch.arange(LATENT_BINS // PATCH, dtype=torch.float64) * 2.0
    along = torch.arange(rows, dtype=torch.float64) * 32.0 / rows
    grid = torch.stack([columns.expand(rows, -1), along[:, None].expand(-1, len(columns))], dim=2)
    angles = grid[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=3).flatten(2).flatten(0, 1).float()


def read_networks(checkpoint: Path, config: Config, *, layers: int) -> Networks:
    """The networks of a checkpoint, MuQ with so many layers. Raises CheckpointError."""
    return load_networks(read_checkpoint(CHECKPOINT, checkpoint), {**config.to_mapping(), "layer_num": layers + 1})


def official_parts(networks: Networks, config: Config) -> dict[str, nn.Module]:
    """The networks by names of `PARTS`."""
    return {
        "muq": OfficialMuq(networks.muq, config),
        "quantizer": Quantizer(networks.quantizer),
        "condition": OfficialCondition(networks),
        "estimator": OfficialEstimator(networks.estimator),
        "vae": OfficialVae(networks.first_stage, networks.scale.scale_factor),
        "vocoder": networks.first_stage.vocoder,
    }


def _behind(convolution: nn.Module, norm: BatchNorm, kind: type[nn.BatchNorm1d | nn.BatchNorm2d]) -> nn.Sequential:
    """A convolution and its batch norm."""
    made = kind(len(norm.weight), eps=NORM_EPS)
    made.load_state_dict(norm.state_dict(), strict=False)
    return nn.Sequential(convolution, made.eval())
