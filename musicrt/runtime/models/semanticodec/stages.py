"""SemantiCodec cut into the stages that are exported.

`split` takes the networks and gives one module per stage. The results are those of the official networks up to rounding; what
changed is where the work is done:

- what depends on the tokens (keys and values of the context) and on the timestep is a stage of its own, run once per window and
  once per schedule; the rows of guidance part in the denoiser where they first differ;
- nearest-neighbour upsampling and its convolution become one small convolution per output phase;
- the LSTM keeps its weights in ONNX's order; the latent's scale moves into the first convolution of the VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import Lstm
from musicrt.runtime.models.semanticodec.config import HOP, POSITION_CHANNELS, Config
from musicrt.runtime.models.semanticodec.fbank import FLOOR, MEAN, SCALE, fbank_matrices
from musicrt.runtime.models.semanticodec.network.checkpoint import Networks, fit_config, load_networks
from musicrt.runtime.models.semanticodec.network.residual import AcousticCodebook, ResidualEncoder, SemanticCodebook, search
from musicrt.runtime.models.semanticodec.network.unet import UNet
from musicrt.runtime.models.semanticodec.network.vae import FirstStage, VaeDecoder

__all__ = ["build_stages", "fit_config", "load_stages", "position_code", "split"]


class FrontEnd(nn.Module):
    """The filter bank as matrix products; on the host an FFT does it (`fbank.py`)."""

    def __init__(self) -> None:
        super().__init__()
        analysis, filters = fbank_matrices()
        self.analysis = nn.Parameter(torch.from_numpy(analysis.T.copy())[:, None])
        self.filters = nn.Parameter(torch.from_numpy(filters.copy()))

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float32 [B, 160 * frames + 240] -> normalised mel [B, frames, 128]."""
        real, imaginary = F.conv1d(waveform[:, None], self.analysis, stride=HOP).chunk(2, dim=1)
        energy = (real.square() + imaginary.square()).transpose(1, 2) @ self.filters
        return (torch.log(energy.clamp(min=FLOOR)) - MEAN) / SCALE


class Residual(nn.Module):
    """`ResidualEncoder` with exportable layers."""

    def __init__(self, network: ResidualEncoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Lstm.from_torch(network.encoder, index) for index in range(network.encoder.num_layers)])
        self.projection = network.encoder_output_linear

    def forward(self, representation: Tensor, centroids: Tensor, mask: Tensor) -> Tensor:
        """See `ResidualEncoder`."""
        active = mask[:, :, None]
        x = torch.cat([representation, centroids], dim=2) * active + (active - 1.0)
        for layer in self.layers:
            x = layer(x)
        return self.projection(x)


class Acoustic(nn.Module):
    """`AcousticCodebook` without the axis before its entries: taking it off in the graph would cost a second copy at each start."""

    def __init__(self, network: AcousticCodebook) -> None:
        super().__init__()
        self.entries = nn.Parameter(network.embed.data[0])

    def forward(self, residual: Tensor) -> Tensor:
        """See `AcousticCodebook`."""
        return search(residual, self.entries)

    def look_up(self, codes: Tensor) -> Tensor:
        """codes: int64 [...] -> entries float32 [..., D]."""
        return F.embedding(codes, self.entries)


class Embedding(nn.Module):
    """Codes -> their vectors, the acoustic one first (SPEC section 3.2)."""

    def __init__(self, semantic: SemanticCodebook, acoustic: Acoustic) -> None:
        super().__init__()
        self.semantic, self.acoustic = semantic, acoustic

    def forward(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        """semantic, acoustic: int64 [B, n] -> float32 [B, n, 2D]."""
        return torch.cat([self.acoustic.look_up(acoustic), self.semantic.look_up(semantic)], dim=2)


class Conditioning(nn.Module):
    """The feature of a window and its positional code -> keys and values of every context attention."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.positions = nn.Parameter(position_code(unet.config.tokens))

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        """feature: float32 [B, T, 2D] -> all keys, then all values [B, T, C]."""
        context = torch.cat([feature, self.positions.expand(feature.shape[0], -1, -1)], dim=2)
        keys, values = zip(*self.unet.project(context), strict=True)
        return (*keys, *values)


class Timesteps(nn.Module):
    """Timesteps -> what each residual block adds."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: int64 [steps] -> float32 [steps, channels of all residual blocks]."""
        return self.unet.shifts(timestep)


class Denoiser(nn.Module):
    """One evaluation of the U-Net, its context and timestep prepared."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, *inputs: Tensor) -> Tensor:
        """Keys and values [G, B, ...] as from `Conditioning`, x [B, 8, 256, 16], shift [B, channels] -> v [G, B, 8, 256, 16]."""
        *context, x, shift = inputs
        half = len(context) // 2
        return self.unet.denoise(x, shift, context[:half], context[half:])


class Vae(nn.Module):
    """`VaeDecoder` with the scale in its first convolution, and cheaper upsampling."""

    def __init__(self, network: VaeDecoder) -> None:
        super().__init__()
        self.first_stage: FirstStage = network.first_stage_model
        convolution = self.first_stage.post_quant_conv
        convolution.weight = nn.Parameter(convolution.weight.data * (1.0 / network.scale_factor), requires_grad=False)
        self.first_stage.decoder.fold_upsampling()

    def forward(self, latent: Tensor) -> Tensor:
        """latent: float32 [B, 8, 256, 16] -> log-mel [B, 1024, 64]."""
        return self.first_stage(latent)[:, 0]


def position_code(tokens: int) -> Tensor:
    """Sines and cosines of the positions, interleaved: float32 [tokens, 192] (SPEC section 3.2)."""
    rates = torch.exp(torch.arange(0, POSITION_CHANNELS, 2, dtype=torch.float32) * (-torch.log(torch.tensor(10000.0)) / POSITION_CHANNELS))
    angles = torch.arange(tokens, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def split(networks: Networks) -> dict[str, nn.Module]:
    """One module per stage, made of the layers of the networks, which must not be used any more."""
    acoustic = Acoustic(networks.acoustic)
    return {
        "frontend": FrontEnd(),
        "audiomae": networks.audiomae,
        "semantic": networks.semantic,
        "residual": Residual(networks.residual),
        "acoustic": acoustic,
        "embedding": Embedding(networks.semantic, acoustic),
        "conditioning": Conditioning(networks.unet),
        "timesteps": Timesteps(networks.unet),
        "denoiser": Denoiser(networks.unet),
        "vae": Vae(networks.vae),
        "vocoder": networks.vocoder,
    }


def build_stages(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Untrained stages."""
    return split(Networks.build(Config.from_mapping(config)))


def load_stages(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages with the weights of a checkpoint: the contents of each official file, by file name. Raises CheckpointError."""
    return split(load_networks(files, config))
