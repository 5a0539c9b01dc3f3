"""The state of a calibration to 8-bit integers: which layers of which stage are lowered, and the pipeline that this makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from musicrt.calibration.capture import Feeds, smallest
from musicrt.calibration.graphs import Layer, StageGraph, open_model
from musicrt.calibration.lowerable import LowerableGraph
from musicrt.calibration.quality import measure_outputs
from musicrt.calibration.ranges import Method, Ranges, find_ranges
from musicrt.calibration.sensitivity import OnLayer, noise_by_layer, noise_of
from musicrt.runtime.manifest import LoweredEntry
from musicrt.runtime.session import Session
from musicrt.runtime.spec import StageSpec


class LoweredStage:
    """One stage whose convolutions and linears compute in integers, but for those that are kept. `model`: its graph now.

    graph: what is lowered; reference: what it is held against. feeds: of the float32 graph.
    """

    def __init__(
        self, graph: LowerableGraph, reference: StageGraph, feeds: list[Feeds], keep: tuple[str, ...], ranges: Method, threads: int | None
    ) -> None:
        self.graph: StageGraph = graph
        self.reference, self.feeds, self.method, self._integers, self._threads = reference, feeds, graph.method, graph, threads
        self.candidates = [layer for layer in graph.layers if not layer.is_in(keep)]
        self.kept: list[str] = [layer.name for layer in graph.layers if layer.is_in(keep)]
        self.noise: dict[str, float] = {}
        self._ranges: Ranges = find_ranges(graph, feeds, graph.values_of(self.candidates), ranges, threads)
        self.model: onnx.ModelProto = self._lower()

    @property
    def stage(self) -> StageSpec:
        return self.graph.stage

    @property
    def lowered(self) -> list[Layer]:
        """Layers that compute in integers."""
        return [layer for layer in self.candidates if layer.name not in self.kept]

    def keep(self, names: Iterable[str]) -> None:
        """Leave these layers as they were from now on."""
        self.kept += [name for name in names if name not in self.kept]
        self.model = self._lower()

    def find_noise(self, on_layer: OnLayer | None = None) -> None:
        """Measure how sensitive each layer is, if that was not done."""
        if not self.noise:
            self.noise = noise_by_layer(self._integers, smallest(self.feeds), self._ranges, tuple(self.kept), self._threads, on_layer)

    def open(self) -> Session:
        return open_model(self.stage, self.model, self.graph.folder, self._threads)

    def own(self, feeds: Feeds) -> Feeds:
        """Feeds of the float32 graph as those of the lowered one, which may write into them."""
        return self.graph.take(feeds)

    def rounded(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Outputs of the float32 graph as those of the lowered one."""
        return outputs

    def describe(self) -> LoweredEntry:
        """What the manifest says of it: distances are the worst of all feeds that were captured."""
        found: dict[str, float] = {}
        noise = 0.0
        names = [tensor.name for tensor in self.stage.outputs]
        reference = self.reference.probe(names, self._threads)
        with self.open() as session:
            for feeds in self.feeds:
                produced, expected = session.run(self.own(feeds)), self.rounded(reference(feeds))
                noise = max(noise, noise_of(produced, expected))
                for name, value in measure_outputs(produced, expected).items():
                    worse = np.fmax if name.endswith("KL") else np.fmin
                    found[name] = float(worse(found.get(name, value), value))
        error = math.sqrt(noise)
        return LoweredEntry(method=self.method, error=error, layers=len(self.lowered), kept=sorted(self.kept), outputs=found)

    def _lower(self) -> onnx.ModelProto:
        return self._integers.lower(self.lowered, self._ranges)


def lowered_sessions(stages: Mapping[str, LoweredStage], open_session: Callable[[str], Session]) -> Callable[[str], Session]:
    """Opens lowered stages; `open_session` opens the others."""
    return lambda name: stages[name].open() if name in stages else open_session(name)
