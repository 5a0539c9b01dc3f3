"""What MusicRT is compared with: the networks as the official code runs them, and their plain exports to ONNX (needs torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.plain import export_once, export_part
from benchmarks.rounds import Outputs
from benchmarks.semanticodec.official import PARTS, Official, example_contexts, example_inputs
from benchmarks.semanticodec.workload import Workload
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.hub import find_files
from musicrt.runtime.models.semanticodec.network.checkpoint import Networks, load_networks
from musicrt.runtime.models.semanticodec.spec import build_spec
from musicrt.runtime.models.semanticodec.stages import Acoustic, Embedding


class Eager(Official):
    """The networks in torch. What the official files hold for training only is not loaded, unlike officially."""

    def __init__(self, checkpoint: Path, config: Mapping[str, Any], threads: int | None) -> None:
        super().__init__(config)
        if threads:
            torch.set_num_threads(threads)
        networks = read_networks(checkpoint, config)
        self.unet, self.parts = networks.unet, official_parts(networks)

    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See `Official`."""
        with torch.inference_mode():
            produced = self.parts[part](*map(torch.from_numpy, inputs))
        values = produced if isinstance(produced, tuple) else (produced,)
        return {name: value.numpy() for name, value in zip(PARTS[part][1], values, strict=True)}

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`."""
        contexts = [torch.from_numpy(context) for context in example_contexts(work)]

        @torch.inference_mode()
        def condition() -> Outputs:
            found: dict[str, NDArray[Any]] = {}
            for i, rows in enumerate(zip(*(self.unet.project(context) for context in contexts), strict=True)):
                for kind, side in zip(("key", "value"), zip(*rows, strict=True), strict=True):
                    found[f"{kind}{i}"] = torch.stack(side).numpy()
            return found

        return {**super().stages(work), "conditioning": condition}


def read_networks(checkpoint: Path, config: Mapping[str, Any]) -> Networks:
    """The networks as in the checkpoint. Raises CheckpointError."""
    return load_networks(read_checkpoint(build_spec(config, "benchmark").checkpoint, checkpoint), config)


def official_parts(networks: Networks) -> dict[str, nn.Module]:
    """The networks by names of PARTS."""
    return {
        "audiomae": networks.audiomae,
        "semantic": networks.semantic,
        "residual": networks.residual,
        "acoustic": networks.acoustic,
        "embedding": Embedding(networks.semantic, Acoustic(networks.acoustic)),
        "unet": networks.unet,
        "vae": networks.vae,
        "vocoder": networks.vocoder,
    }


def export_plain(checkpoint: str, config: Mapping[str, Any], cache: str) -> dict[str, Any]:
    """Export every part with the exporter's defaults into a folder of `cache`, once. Returns its path.

    Only the number of tokens that are embedded changes from call to call. Raises CheckpointError, OutputError.
    """
    source = Path(checkpoint)
    files = find_files(build_spec(config, "benchmark").checkpoint, source)

    def export(folder: Path) -> None:
        parts, work = official_parts(read_networks(source, config)), Workload.build(config, 10.0)
        for name, (inputs, outputs) in PARTS.items():
            example = tuple(map(torch.from_numpy, example_inputs(name, work)))
            dynamic = ({1: torch.export.Dim.AUTO},) * 2 if name == "embedding" else None
            export_part(folder / f"{name}.onnx", parts[name], example, inputs, outputs, dynamic)

    return {"folder": str(export_once(Path(cache), list(files.values()), config, export))}
