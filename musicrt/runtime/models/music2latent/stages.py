"""Music2Latent cut into the stages that are exported, with everything folded that the maths allows.

`split` takes the network of `network/unet.py` and gives one module per stage. The results are those of the official network up
to rounding; what changed is where the work is done:

- nearest-neighbour upsampling and its convolution become one small convolution per output phase (SPEC section 13);
- attention stays channel-first, so that only the frame axis moves; its norm's affine part, the key bias (softmax ignores
  it) and the value bias (softmax sums to one) move into the projections' weights;
- the 1x1 convolutions that see latents only (SPEC section 7.4) belong to the pyramid stage;
- everything that depends on sigma only is the conditioning stage, run once per schedule;
- the divisions by sqrt(2) and sqrt(3) move into neighbouring weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.layers import PhaseUpsample
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.autoencoder import Encoder, LatentDecoder
from musicrt.runtime.models.music2latent.network.blocks import Downsample, ResBlock, Upsample
from musicrt.runtime.models.music2latent.network.checkpoint import load_network
from musicrt.runtime.models.music2latent.network.folding import fold_block, scale_convolution
from musicrt.runtime.models.music2latent.network.spectra import Frontend, Synthesis
from musicrt.runtime.models.music2latent.network.unet import UNet
from musicrt.runtime.models.music2latent.spectrum import hann_window
from musicrt.runtime.networks.fourier import FourierBasis


class EncoderStage(nn.Module):
    """The encoder with its attention folded."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        for layer in encoder.down_layers:
            if isinstance(layer, ResBlock):
                fold_block(layer)
        self.encoder = encoder

    def forward(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        latents, features = self.encoder(representation)
        return latents, features


class Conditioning(nn.Module):
    """Everything that depends on sigma only, for all steps of a schedule at once (SPEC section 7.1)."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(network.emb.frequencies)
        self.emb_proj, self.scale_inp, self.scale_out = network.emb_proj, network.scale_inp, network.scale_out
        blocks = [layer for layer in (*network.down_layers, *network.up_layers) if isinstance(layer, ResBlock)]
        self.shift_weight = nn.Parameter(torch.cat([block.proj_emb.weight.data for block in blocks]))
        self.shift_bias = nn.Parameter(torch.cat([block.proj_emb.bias.data for block in blocks]))

    def forward(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """sigma: float32 [n] -> embedding, time_emb [n, D], scale_inp, scale_out [n, F], shift [n, sum of block widths]."""
        angles = (torch.log(sigma) / 4.0)[:, None] * self.frequencies
        embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
        time_emb = F.silu(self.emb_proj(embedding))
        shift = F.linear(time_emb, self.shift_weight, self.shift_bias)
        return embedding, time_emb, self.scale_inp(embedding), self.scale_out(embedding), shift


class Pyramid(nn.Module):
    """Latents -> the five maps and what every denoiser block takes of them, in the order in which it is used."""

    def __init__(self, decoder: LatentDecoder, taps: list[tuple[int, nn.Conv2d]]) -> None:
        super().__init__()
        for index, layer in enumerate(decoder.up_layers):
            if isinstance(layer, ResBlock):
                fold_block(layer)
            elif isinstance(layer, Upsample):
                decoder.up_layers[index] = PhaseUpsample(layer.c, layer.scale)
        self.decoder = decoder
        self.levels = [level for level, _ in taps]
        self.taps = nn.ModuleList([tap for _, tap in taps])

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """latents: float32 [B, 64, L], raw -> 5 maps, finest first, and one contribution for each tap."""
        maps = self.decoder(latents)
        return (*maps, *self.contribute(maps))

    def contribute(self, maps: list[Tensor]) -> Iterator[Tensor]:
        """What the denoiser takes of the maps, one block after the other."""
        return (tap(maps[level]) for level, tap in zip(self.levels, self.taps, strict=True))


class Denoiser(nn.Module):
    """One evaluation of the U-Net between the preconditioning factors (SPEC section 7.3).

    The official stream is divided by sqrt(2) or sqrt(3) after every sum. Here it is left to grow, and each block knows the
    `gain` it has at that place: convolutions that write into the stream are multiplied by it, the epsilon of the norms that
    read it by its square. Only skips of another gain than the stream's are still multiplied (`skip_factors`).
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.conv_inp, self.norm_out, self.conv_out = network.conv_inp, network.norm_out, network.conv_out
        self.down_layers = nn.ModuleList([layer for layer in network.down_layers if not isinstance(layer, nn.Conv2d)])
        self.up_layers = nn.ModuleList([layer for layer in network.up_layers if not isinstance(layer, nn.Conv2d)])
        self.tap_gains: list[float] = []
        self.skip_factors: list[float] = []
        gain, skip_gains = 1.0, list[float]()
        for layer in self.down_layers:
            if isinstance(layer, ResBlock):
                gain = self._enter(layer, gain, 2)
                skip_gains.append(gain)
            elif isinstance(layer, Downsample):
                scale_convolution(layer.c, 1.0 / gain, 1.0)
                gain = 1.0
        for index, layer in enumerate(self.up_layers):
            if isinstance(layer, ResBlock):
                self.skip_factors.append(gain / skip_gains.pop())
                gain = self._enter(layer, gain, 3)
            elif isinstance(layer, Upsample):
                scale_convolution(layer.c, skip_gains[-1] / gain, skip_gains[-1])
                gain = skip_gains[-1]
                self.up_layers[index] = PhaseUpsample(layer.c, layer.scale)
        self.tap_gains.append(gain)
        self.norm_out.eps *= 2.0 * gain**2

    def _enter(self, block: ResBlock, gain: float, terms: int) -> float:
        """Fold a block that follows a sum of `terms` terms; the gain behind it."""
        self.tap_gains.append(gain)
        gain *= math.sqrt(terms)
        fold_block(block, gain)
        del block.proj_emb  # part of the conditioning stage
        return gain

    def forward(self, x: Tensor, scale_inp: Tensor, scale_out: Tensor, shift: Tensor, *contributions: Tensor) -> Tensor:
        """x: float32 [B, 2, F, T], already times c_in; the rest as Conditioning and Pyramid give it -> [B, 2, F, T]."""
        return self.denoise(x, scale_inp, scale_out, shift, iter(contributions))

    def denoise(self, x: Tensor, scale_inp: Tensor, scale_out: Tensor, shift: Tensor, taps: Iterator[Tensor]) -> Tensor:
        """The same with contributions that are made when they are needed."""
        factors = iter(self.skip_factors)
        shifts = iter(torch.split(shift, self._widths(), dim=1))
        skips: list[Tensor] = []
        h = self.conv_inp(x) * (1.0 + scale_inp)[:, None, :, None]
        for layer in self.down_layers:
            if isinstance(layer, ResBlock):
                h = layer(h + next(taps), next(shifts))
                skips.append(h)
            else:
                h = layer(h)
        for layer in self.up_layers:
            if isinstance(layer, ResBlock):
                skip, factor = skips.pop(), next(factors)
                h = layer(h + next(taps) + (skip if math.isclose(factor, 1.0) else skip * factor), next(shifts))
            else:
                h = layer(h)
        h = F.silu(self.norm_out(h + next(taps)))
        return self.conv_out(h * (1.0 + scale_out)[:, None, :, None])

    def _widths(self) -> list[int]:
        return [layer.conv1.out_channels for layer in (*self.down_layers, *self.up_layers) if isinstance(layer, ResBlock)]


class OneStepDecoder(nn.Module):
    """Pyramid and denoiser in one graph: the default single step needs none of the maps outside of it.

    Contributions are made where they are used: all of them at once are 4.5 times the maps.
    """

    def __init__(self, pyramid: Pyramid, denoiser: Denoiser) -> None:
        super().__init__()
        self.pyramid, self.denoiser = pyramid, denoiser

    def forward(self, latents: Tensor, x: Tensor, scale_inp: Tensor, scale_out: Tensor, shift: Tensor) -> Tensor:
        """Inputs as those of the two stages -> [B, 2, F, T]."""
        maps = self.pyramid.decoder(latents)
        return self.denoiser.denoise(x, scale_inp, scale_out, shift, self.pyramid.contribute(maps))


def split(network: UNet) -> dict[str, nn.Module]:
    """The network as one module per stage. It is used up: its layers move into the stages and are folded in place."""
    conditioning = Conditioning(network)
    taps = [*_taps(network.down_layers), *_taps(network.up_layers, descending=True), (0, network.conv_decoded)]
    denoiser = Denoiser(network)
    for (_, tap), gain in zip(taps, denoiser.tap_gains, strict=True):
        scale_convolution(tap, gain, gain)
    pyramid, basis = Pyramid(network.decoder, taps), FourierBasis(hann_window(network.config.fft_size))
    stages = {
        "frontend": Frontend(network.config, basis),
        "encoder": EncoderStage(network.encoder),
        "conditioning": conditioning,
        "pyramid": pyramid,
        "denoiser": denoiser,
        "decoder": OneStepDecoder(pyramid, denoiser),
        "synthesis": Synthesis(network.config, basis),
    }
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}


def _taps(layers: nn.ModuleList, *, descending: bool = False) -> list[tuple[int, nn.Conv2d]]:
    """The 1x1 convolutions of one path with the pyramid level that each of them reads."""
    last = sum(isinstance(layer, Downsample | Upsample) for layer in layers)
    found, level = list[tuple[int, nn.Conv2d]](), 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            found.append((last - level if descending else level, layer))
        elif not isinstance(layer, ResBlock):
            level += 1
    return found


def fit_config(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hyper-parameters as they are: the checkpoint's files tell no others."""
    del files
    return config


def build_stages(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages for given hyper-parameters (official names) with untrained weights."""
    return split(UNet(Config.from_mapping(config)))


def load_stages(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages with the weights of a checkpoint: the contents of each official file, by file name. Raises CheckpointError."""
    return split(load_network(files, config))
