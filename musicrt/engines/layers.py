"""The layers of an engine and their precision, as the strongly typed network definition has them.

TensorRT fuses layers when it builds, but in a strongly typed network it keeps their types: what is float32 here is computed in float32 by
whatever kernel it ends up in, and nothing else is. The network definition can be read without a GPU; a plan can't (`inspect.read_engine`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.spec import StageSpec

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
MOVES = frozenset(
    ("CAST", "CONCATENATION", "CONSTANT", "GATHER", "IDENTITY", "PADDING", "SELECT", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE")
)
"""Types of layers that compute nothing: they move values, or change their type."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class Layer(BaseModel):
    """One layer. `node`, `operator`: the ONNX node that it was made from. `precision`: the widest float that it computes with, or else
    the type of what it gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    type: str
    node: str
    operator: str
    inputs: list[str]
    outputs: list[str]

    @property
    def precision(self) -> str:
        types = (*self.inputs, *self.outputs)
        return next((wide for wide in ("float32", "bfloat16", "float16") if wide in types), self.outputs[0] if self.outputs else "none")

    @property
    def computes(self) -> bool:
        """Whether it does arithmetic."""
        return self.type not in MOVES


class Report(BaseModel):
    """What is known of a plan without a GPU; a file beside it. `source` says where the layers come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stage: str
    source: str = "network definition, read when the engine was built; TensorRT has fused them since"
    seconds: float
    activation_bytes: int | None
    weight_bytes: int | None
    profiles: list[ProfileEntry]
    layers: list[Layer]


def read_layers(trt: Any, network: Any, operators: Mapping[str, str]) -> list[Layer]:
    """Every layer of a network definition. `operators`: those of the ONNX nodes, by node name.

    The parser notes a node on the layer that gives its result; those that it adds on the way come before that one.
    """
    layers: list[Layer] = []
    waiting: list[tuple[str, str, list[str], list[str]]] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        found = _NODE.search(layer.metadata or "")
        waiting.append(
            (
                layer.name,
                layer.type.name,
                [type_name(trt, tensor.dtype) for tensor in inputs if tensor is not None],
                [type_name(trt, layer.get_output(i).dtype) for i in range(layer.num_outputs)],
            )
        )
        if found:
            node = found.group(1)
            layers += [_layer(*one, node, operators.get(node, "")) for one in waiting]
            waiting.clear()
    return [*layers, *(_layer(*one, "", "") for one in waiting)]


def node_operators(graph: Path) -> dict[str, str]:
    """The operator of every node of an ONNX file, by node name."""
    import onnx

    return {node.name: node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}


def type_name(trt: Any, dtype: Any) -> str:
    """A type of TensorRT in the words of numpy."""
    name = str(trt.DataType(dtype).name)
    return _TYPES.get(name, name.lower())


def count_precisions(layers: Iterable[Layer]) -> dict[str, Counter[str]]:
    """How many layers there are of each operator, by precision; those that only move values are left out."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.computes:
            counts.setdefault(layer.operator or layer.type.lower(), Counter())[layer.precision] += 1
    return counts


def undeclared(stage: StageSpec, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that compute in float32 without being on an island of the stage's half precision."""
    if stage.half is None:
        return []
    declared = set(stage.half.operators)
    return [layer for layer in layers if layer.computes and layer.precision == "float32" and layer.operator not in declared]


def _layer(name: str, kind: str, inputs: list[str], outputs: list[str], node: str, operator: str) -> Layer:
    return Layer(name=name, type=kind, node=node, operator=operator, inputs=inputs, outputs=outputs)
