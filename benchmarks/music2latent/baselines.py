"""What MusicRT is compared with: the network as the official code runs it, and its plain export to ONNX (needs torch)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.music2latent.workload import Float, Outputs, Workload, crop_audio, official_schedule
from benchmarks.plain import export_once, export_part
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.hub import find_files
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.blocks import ResBlock
from musicrt.runtime.models.music2latent.network.checkpoint import load_network
from musicrt.runtime.models.music2latent.network.unet import UNet
from musicrt.runtime.models.music2latent.spec import CHECKPOINT
from musicrt.runtime.models.music2latent.spectrum import Spectrum


class Eager:
    """The un-split network in torch. Every step computes the pyramid and the convolutions of it again, as officially."""

    def __init__(self, checkpoint: Path, config: Mapping[str, Any], threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.config = Config.from_mapping(config)
        self.spectrum = Spectrum(self.config)
        self.network = load_network(read_checkpoint(CHECKPOINT, checkpoint), config)

    def encode(self, audio: Float) -> Float:
        """Audio float32 [1, n] -> latents [1, 64, L]."""
        spectrum = torch.from_numpy(self.spectrum.analyse(crop_audio(self.config, audio)))
        with torch.inference_mode():
            latents: Tensor = self.network.encoder(spectrum)[0] / self.config.sigma_rescale
        return latents.numpy()

    def decode(self, latents: Float, steps: int, noise: Sequence[Float] | None = None) -> Float:
        """Latents [1, 64, L] -> audio [1, n]: the official loop, with its unused draw after the last step."""
        config, schedule = self.config, official_schedule(self.config, steps)
        shape = (len(latents), 2, config.bins, latents.shape[-1] * config.frames_per_latent)
        draws = (torch.randn(shape) for _ in range(steps + 1)) if noise is None else map(torch.from_numpy, noise)
        with torch.inference_mode():
            raw = torch.from_numpy(latents) * config.sigma_rescale
            x = next(draws) * schedule.sigmas[0]
            for step in range(steps):
                clean: Tensor = self.network(raw, x, torch.full((len(latents),), schedule.sigmas[step]))
                x = clean + schedule.noise_scale(step) * next(draws)
        return self.spectrum.synthesise(clean.numpy())

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`. The conditioning is a part of every step and evaluation."""
        network, step = self.network, without_decoder(self.network)
        spectrum, raw, noisy = (torch.from_numpy(array) for array in (work.spectrum, work.raw_latents, work.noisy()))
        sigma, audio = torch.tensor([work.config.sigma_max]), crop_audio(work.config, work.audio)
        blocks = [layer for layer in (*network.down_layers, *network.up_layers) if isinstance(layer, ResBlock)]
        with torch.inference_mode():
            maps = network.decoder(raw)

        def condition() -> Outputs:
            embedding = network.emb(sigma)
            time_emb = F.silu(network.emb_proj(embedding))
            shift = torch.cat([block.proj_emb(time_emb) for block in blocks], dim=1)
            tables = {"scale_inp": network.scale_inp(embedding), "scale_out": network.scale_out(embedding), "shift": shift}
            return {name: table.numpy() for name, table in tables.items()}

        calls: dict[str, Callable[[], Outputs]] = {
            "front-end": lambda: {"spectrum": self.spectrum.analyse(audio)},
            "encoder": lambda: {"latents": network.encoder(spectrum)[0].numpy()},
            "noise": lambda: {"noise": torch.randn(spectrum.shape).numpy()},
            "conditioning": condition,
            "pyramid": lambda: {f"pyramid{level}": value.numpy() for level, value in enumerate(network.decoder(raw))},
            "step": lambda: {"clean": step(maps, noisy, sigma).numpy()},
            "evaluation": lambda: {"clean": network(raw, noisy, sigma).numpy()},
            "synthesis": lambda: {"audio": self.spectrum.synthesise(work.spectrum)},
        }
        return {name: torch.inference_mode()(call) for name, call in calls.items()}


def without_decoder(network: UNet) -> UNet:
    """The same layers as a network that is called with the pyramid's maps instead of latents."""
    step = copy.copy(network)
    step._modules = {**network._modules, "decoder": nn.Identity()}
    return step


def export_plain(checkpoint: str, config: Mapping[str, Any], cache: str) -> dict[str, Any]:
    """Export encoder, pyramid and U-Net step with the exporter's defaults into a folder of `cache`, once.

    Returns its path. Raises CheckpointError, OutputError.
    """
    source = Path(checkpoint)
    network = load_network(read_checkpoint(CHECKPOINT, source), config).requires_grad_(False)
    files = list(find_files(CHECKPOINT, source).values())
    return {"folder": str(export_once(Path(cache), files, config, lambda folder: _export_parts(network, folder)))}


def _export_parts(network: UNet, folder: Path) -> None:
    """Only the time axis is dynamic."""
    config, count = network.config, 2
    frames = count * config.frames_per_latent
    spectrum, latents = torch.randn(1, 2, config.bins, frames), torch.randn(1, config.bottleneck_channels, count)
    maps = network.decoder(latents)
    auto = torch.export.Dim.AUTO
    parts: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[Any, ...], list[str], list[str]]] = {
        "encoder": (network.encoder, (spectrum,), ({3: auto},), ["spectrum"], ["latents", "features"]),
        "pyramid": (network.decoder, (latents,), ({2: auto},), ["latents"], [f"pyramid{level}" for level in range(len(maps))]),
        "step": (
            without_decoder(network),
            (maps, spectrum, torch.tensor([1.0])),
            ([{3: auto} for _ in maps], {3: auto}, None),
            [*(f"pyramid{level}" for level in range(len(maps))), "x", "sigma"],
            ["clean"],
        ),
    }
    for name, (module, inputs, dynamic, input_names, output_names) in parts.items():
        export_part(folder / f"{name}.onnx", module, inputs, input_names, output_names, dynamic)
