"""Convolutions and linears in 8-bit integers: ONNX Runtime's quantiser, told which layers and which ranges."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from musicrt.calibration.graphs import LAYERS, Layer, prune
from musicrt.calibration.lowerable import LowerableGraph
from musicrt.calibration.norms import AVERAGE, sum_planes
from musicrt.calibration.projections import LEAVING, turn_projections
from musicrt.calibration.ranges import Ranges

_INFERRED = ("onnx.infer", "onnxruntime.quant")
"""What the quantiser looks for to see that types are known; without, it would write the model to disk and infer them."""


class IntegerGraph(LowerableGraph):
    """The float32 graph of a stage in the form that has kernels in integers on a CPU, with the same results."""

    method: ClassVar[str] = "static"

    def _load(self) -> onnx.ModelProto:
        return turn_projections(sum_planes(super()._load()))

    def _find_layers(self) -> Iterator[Layer]:
        """Neither the means of norms, nor the way out of attention: to round that, OpenVINO would compute attention in float32."""
        apart = (AVERAGE, LEAVING)
        named = {node.name for node in self.model.graph.node if len(node.input) > 1 and node.input[1].startswith(apart)}
        return (layer for layer in super()._find_layers() if layer.node not in named)

    def values_of(self, layers: Sequence[Layer]) -> list[str]:
        """What goes into these layers, and what they give: ONNX Runtime's kernels round both."""
        return list(dict.fromkeys(value for layer in layers for value in (layer.given, layer.made)))

    def lower(self, layers: Sequence[Layer], ranges: Ranges) -> onnx.ModelProto:
        """The graph with these layers between QuantizeLinear and DequantizeLinear: weights S8 for each channel, activations U8, biases S32.

        All weights that are changed are in the model, the others stay where they are.
        """
        model = self.with_weights(layers)
        note = model.metadata_props.add()
        note.key, note.value = _INFERRED
        known = {one.name for one in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
        model.graph.value_info.extend(  # those of rewritten nodes: what has no type is left as it is
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in self.values_of(layers) if name not in known
        )
        limits = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
        with _quiet():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
                nodes_to_quantize=[layer.node for layer in layers],
                nodes_to_exclude=[],
                op_types_to_quantize=list(LAYERS),
                extra_options={"MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        lowered: onnx.ModelProto = quantizer.model.model
        del lowered.metadata_props[:]
        return prune(lowered)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns of what is meant here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
