"""Convolutions and linears in 8-bit integers for TensorRT: pairs of QuantizeLinear and DequantizeLinear in the graphs of half precision.

TensorRT computes a layer in integers where both operands come out of such a pair, and takes what follows into the same kernel; all zero
points have to be 0, and scales in the type of the graph. ONNX Runtime's quantiser is no help with that: it puts 1 in the place of every
scale below 6e-5, the least normal number of half precision, which makes zeros of all channels whose weights are below 0.008.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from musicrt.calibration.graphs import Layer, prune
from musicrt.calibration.lowerable import LowerableGraph
from musicrt.calibration.projections import turn_projections
from musicrt.calibration.ranges import Ranges
from musicrt.runtime.precision import TRT

_LARGEST = 127
_ZERO = "lowered.zero"
_LEAST = float(np.finfo(np.float16).smallest_subnormal)


class EngineGraph(LowerableGraph):
    """The graph of a stage in half precision, whose layers get weights and activations of 8 bits; those in float32 stay so."""

    method: ClassVar[str] = "static"
    flavour: ClassVar[str] = TRT

    def _load(self) -> onnx.ModelProto:
        return turn_projections(super()._load())

    def _find_layers(self) -> Iterator[Layer]:
        weights = {node.name: str(node.input[1]) for node in self.model.graph.node if len(node.input) > 1}
        return (layer for layer in super()._find_layers() if self._type_of(weights[layer.node]) == TensorProto.FLOAT16)

    def _type_of(self, value: str) -> int:
        """The type of a value that follows from a constant."""
        if value in self._constants:
            return int(self._constants[value].data_type)
        maker = self._makers[value]
        return int(_attribute(maker, "to", 0)) if maker.op_type == "Cast" else self._type_of(maker.input[0])

    def values_of(self, layers: Sequence[Layer]) -> list[str]:
        """What goes into these layers: results stay half precision, or are rounded where the next layer takes them."""
        return list(dict.fromkeys(layer.given for layer in layers))

    def lower(self, layers: Sequence[Layer], ranges: Ranges) -> onnx.ModelProto:
        """The graph with these layers behind pairs: of weights with a scale for each output channel, of activations with one.

        All weights that are changed are in the model, the others stay where they are. A value that several layers take has one pair.
        """
        lowered, made = {layer.node for layer in layers}, set[str]()
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        nodes: list[NodeProto] = []
        for old in model.graph.node:
            node = NodeProto.FromString(old.SerializeToString())  # apart from the list that is emptied
            if node.name in lowered:
                for index, pair in enumerate((self._round_given(node, ranges), self._store_weight(node))):
                    if pair is None:
                        continue
                    added, constants = pair
                    node.input[index] = added[-1].output[0]
                    if node.input[index] not in made:
                        made.add(node.input[index])
                        nodes += added
                        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
            nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), _ZERO))
        return prune(model)

    def _round_given(self, node: NodeProto, ranges: Ranges) -> tuple[list[NodeProto], Mapping[str, NDArray[Any]]] | None:
        """The pair of what a layer is given."""
        value = str(node.input[0])
        scale, stored, result = (f"{value}.{what}" for what in ("scale", "int8", "dequantized"))
        pair = [
            helper.make_node("QuantizeLinear", [value, scale, _ZERO], [stored], stored),
            helper.make_node("DequantizeLinear", [stored, scale, _ZERO], [result], result),
        ]
        return pair, {scale: half_scales(np.array(max(map(abs, ranges[value])), np.float32))}

    def _store_weight(self, node: NodeProto) -> tuple[list[NodeProto], Mapping[str, NDArray[Any]]]:
        """Integers in the place of a layer's weight, and what makes numbers of them again."""
        value, axis = str(node.input[1]), _channels(node)
        weight = np.asarray(self.constant(value), np.float32)
        axis %= weight.ndim
        name = f"{value}.by{axis}"
        scale, stored, result = (f"{name}.{what}" for what in ("scale", "int8", "dequantized"))
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scales = half_scales(np.abs(weight).max(others))
        steps = np.rint(weight / np.expand_dims(scales.astype(np.float32), others))
        integers = np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8)
        return [helper.make_node("DequantizeLinear", [stored, scale], [result], result, axis=axis)], {stored: integers, scale: scales}


class EngineWeights(EngineGraph):
    """The same with weights of 8 bits only: for what reads large matrices to multiply few rows with them."""

    method: ClassVar[str] = "weights"

    def values_of(self, layers: Sequence[Layer]) -> list[str]:
        """No ranges are wanted."""
        del layers
        return []

    def _round_given(self, node: NodeProto, ranges: Ranges) -> None:
        """What comes in stays half precision."""


def half_scales(largest: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales float16 under which the largest magnitudes come to 127 at most."""
    exact = np.maximum(largest / _LARGEST, _LEAST)
    scales = exact.astype(np.float16)
    return np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)


def _channels(node: NodeProto) -> int:
    """The axis of a layer's weight on which its outputs are."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else -1


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)
