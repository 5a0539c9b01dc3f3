"""What MusicRT is compared with: the networks as the official code runs them, and their plain exports to ONNX (needs torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from benchmarks.mucodec.networks import WithScores, official_parts, read_networks
from benchmarks.mucodec.official import PARTS, Official, example_inputs
from benchmarks.mucodec.workload import Workload
from benchmarks.plain import export_once, export_part
from musicrt.runtime.hub import find_files
from musicrt.runtime.models.mucodec.config import Config
from musicrt.runtime.models.mucodec.spec import CHECKPOINT

_WITH_SCORES = ("muq", "vae")
_BATCHES = ("muq", "quantizer", "vae", "vocoder")


class Eager(Official):
    """The networks in torch. What the official files hold for training only is not loaded, unlike officially."""

    def __init__(self, checkpoint: Path, config: Mapping[str, Any], threads: int | None) -> None:
        super().__init__(config)
        if threads:
            torch.set_num_threads(threads)
        parts = official_parts(read_networks(checkpoint, self.config, layers=self.config.muq.encoder_depth), self.config)
        self.parts = {name: WithScores(part) if name in _WITH_SCORES else part for name, part in parts.items()}

    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See `Official`."""
        with torch.inference_mode():
            produced = self.parts[part](*map(torch.from_numpy, inputs))
        values = produced if isinstance(produced, tuple) else (produced,)
        return {name: value.numpy() for name, value in zip(PARTS[part][1], values, strict=True)}


def export_plain(checkpoint: str, config: Mapping[str, Any], cache: str) -> dict[str, Any]:
    """Export every part with the exporter's defaults into a folder of `cache`, once, for all lengths. Returns its path.

    Raises CheckpointError, OutputError.
    """
    source, given = Path(checkpoint), Config.from_mapping(config)

    def export(folder: Path) -> None:
        parts, work = official_parts(read_networks(source, given, layers=given.muq.encoder_depth), given), Workload.build(config)
        for name, (inputs, outputs) in PARTS.items():
            example = tuple(torch.from_numpy(array) for array in example_inputs(name, work))
            length = {"muq": 2, "quantizer": 1, "vocoder": 1}.get(name, 2)
            axes = dict.fromkeys((*(0,) * (name in _BATCHES), length), torch.export.Dim.AUTO)
            dynamic = tuple(axes if array.ndim > 1 else None for array in example)
            export_part(folder / f"{name}.onnx", parts[name].eval(), example, inputs, outputs, dynamic)

    return {"folder": str(export_once(Path(cache), list(find_files(CHECKPOINT, source).values()), config, export))}
