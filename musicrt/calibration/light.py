"""A stage whose weights, caches and keys are lowered (`weights`), for the search and the store of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from musicrt.calibration.attention import round_feeds
from musicrt.calibration.capture import Feeds
from musicrt.calibration.graphs import StageGraph, open_model
from musicrt.calibration.lowering import LoweredStage
from musicrt.calibration.sensitivity import OnLayer
from musicrt.calibration.weights import find_linears, is_kept, lower
from musicrt.runtime.precision import INT8
from musicrt.runtime.session import Session
from musicrt.runtime.spec import StageSpec


class LightStage(LoweredStage):
    """What `LoweredStage` is for integers throughout. `peaks`: ranges of keys and values by name, as `weights.lower` takes them."""

    def __init__(self, graph: StageGraph, feeds: list[Feeds], peaks: Mapping[str, NDArray[np.float32]], threads: int | None) -> None:
        stage = graph.stage
        self.graph, self.reference, self.method, self._threads, self._peaks = graph, graph, "weights", threads, peaks
        self.feeds = [_first(stage, one) for one in feeds]
        int8 = stage.int8
        lowered = {linear.name for linear in find_linears(self._read())} if int8 is not None and int8.bits else set()
        weights = {node.name: str(node.input[1]) for node in graph.model.graph.node if len(node.input) > 1}
        layers = [layer for layer in graph.layers if weights[layer.node] in lowered]
        self._weights = {layer.name: weights[layer.node] for layer in layers}
        keep = int8.keep if int8 is not None else ()
        self.candidates = [layer for layer in layers if not is_kept(self._weights[layer.name], keep)]
        self.kept = [layer.name for layer in layers if layer not in self.candidates]
        self.noise = {}
        self.model = self._lower()

    def find_noise(self, on_layer: OnLayer | None = None) -> None:
        """Not measured: of weights alone, none stands out, and each lowered one is as much worth as any other."""

    def open(self) -> Session:
        return open_model(self.stage.in_flavour(INT8), self.model, self.graph.folder, self._threads)

    def own(self, feeds: Feeds) -> Feeds:
        """Feeds of the float32 graph as those of the lowered one."""
        return round_feeds(self.stage, feeds, self._peaks)

    def rounded(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return round_feeds(self.stage, outputs, self._peaks)

    def _read(self) -> ir.Model:
        return ir.load(self.graph.path)

    def _lower(self) -> onnx.ModelProto:
        kept = [self._weights[name] for name in self.kept]
        return ir.to_proto(lower(self._read(), self.stage, self._peaks, kept))


def _first(stage: StageSpec, feeds: Feeds) -> Feeds:
    """Feeds with one entry of the axis of which the lowered graph takes no more: the first."""
    if stage.int8 is None or not stage.int8.single:
        return feeds
    cut = dict(feeds)
    for tensor in stage.inputs:
        for place, dim in enumerate(tensor.dims):
            if not isinstance(dim, int) and dim.axis.name == stage.int8.single:
                cut[tensor.name] = np.ascontiguousarray(np.take(feeds[tensor.name], [0], place))
    return cut
