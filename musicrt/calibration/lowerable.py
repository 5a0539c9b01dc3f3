"""What a graph is for the search of a calibration: layers that it can lower, by the ranges of values that it names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import onnx

from musicrt.calibration.graphs import Layer, StageGraph
from musicrt.calibration.ranges import Ranges


class LowerableGraph(StageGraph, ABC):
    """The graph of a stage in the form in which its layers are lowered, with the same results. `method`: as of `Int8`."""

    method: ClassVar[str]

    @abstractmethod
    def values_of(self, layers: Sequence[Layer]) -> list[str]:
        """The values whose ranges it takes to lower these layers."""

    @abstractmethod
    def lower(self, layers: Sequence[Layer], ranges: Ranges) -> onnx.ModelProto:
        """The graph with these layers in 8-bit integers. All weights that are changed are in the model, the others stay where they are."""
