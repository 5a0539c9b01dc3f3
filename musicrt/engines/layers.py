"""The layers of an engine and their precision, as the strongly typed network definition has them.

TensorRT fuses layers when it builds, but in a strongly typed network it keeps their types: what is float32 here is computed in float32 by
whatever kernel it ends up in, and nothing else is. A layer whose operands were both rounded to 8 bits is computed in integers: in the
network definition it stands between values of half precision, and fusion takes the conversions into it. The network definition can be
read without a GPU; a plan can't (`inspect.read_engine`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.precision import Half, kept_name
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensorrt_family import type_name

MOVES = frozenset(
    (
        *("CAST", "CONCATENATION", "CONSTANT", "DEQUANTIZE", "GATHER", "IDENTITY", "PADDING", "QUANTIZE", "SELECT", "SHAPE", "SHUFFLE"),
        *("SLICE", "SQUEEZE", "UNSQUEEZE"),
    )
)
"""Types of layers that compute nothing: they move values, or change their type."""
PRODUCTS = frozenset(("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"))
"""Types of layers that may be lowered to 8-bit integers."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class Layer(BaseModel):
    """One layer. `node`, `operator`: the ONNX node that it was made from. `positions`: it makes floats of whole numbers, or goes on with
    those; these stay float32 in every stage, because half precision does not tell large ones apart. `int8`: what is stored in 8 bits of a
    layer of `PRODUCTS`: "all" of its operands, so that it computes in integers, or its "weights".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    type: str
    node: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    positions: bool = False
    int8: Literal["none", "weights", "all"] = "none"

    @property
    def precision(self) -> str:
        """The widest float that it computes with, or else the type of what it gives; "int8" where it computes in integers."""
        if self.int8 != "none":
            return "int8" if self.int8 == "all" else "int8 weights"
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


@dataclass(frozen=True)
class Nodes:
    """Of an ONNX graph: the operator of every node, by its name, and the node that makes each value, by the name of that."""

    operators: Mapping[str, str]
    makers: Mapping[str, str]


def read_layers(trt: Any, network: Any, nodes: Nodes) -> list[Layer]:
    """Every layer of a network definition, with the node that it was made from."""
    owners = _find_owners([network.get_layer(index) for index in range(network.num_layers)], nodes)
    positions, constants, rounded = set[str](), set[str](), set[str]()
    return [_read(trt, layer, node, nodes.operators.get(node, ""), positions, constants, rounded) for layer, node in owners]


def _find_owners(layers: Sequence[Any], nodes: Nodes) -> list[tuple[Any, str]]:
    """The node of each layer: that whose value it gives, or else that of a layer that takes what it gives.

    The parser notes a node on one of its layers only, and behind that one others may follow (of a loop, say). What leads nowhere belongs to
    the note that comes next.
    """
    made = {tensor.name: index for index, layer in enumerate(layers) for tensor in _outputs(layer)}
    owners = {made[value]: node for value, node in nodes.makers.items() if value in made}
    todo = list(owners)
    while todo:
        index = todo.pop()
        for maker in (made.get(tensor.name) for tensor in _inputs(layers[index])):
            if maker is not None and maker not in owners:
                owners[maker] = owners[index]
                todo.append(maker)
    found: list[tuple[Any, str]] = []
    noted = ""
    for index in reversed(range(len(layers))):
        if note := _NODE.search(layers[index].metadata or ""):
            noted = note.group(1)
        found.append((layers[index], owners.get(index, noted)))
    return found[::-1]


def _inputs(layer: Any) -> list[Any]:
    return [tensor for tensor in (layer.get_input(i) for i in range(layer.num_inputs)) if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(i) for i in range(layer.num_outputs)]


def _read(trt: Any, layer: Any, node: str, operator: str, positions: set[str], constants: set[str], rounded: set[str]) -> Layer:
    """One layer; the tensors that it gives are added to those of positions, to the constants, or to those that 8 bits hold."""
    inputs, outputs = _inputs(layer), _outputs(layer)
    kind, given = layer.type.name, [type_name(trt, tensor.dtype) for tensor in outputs]
    floats = [tensor.name for tensor in inputs if "float" in type_name(trt, tensor.dtype) and tensor.name not in constants]
    makes = "float32" in given and (operator == "Range" or (kind == "CAST" and not floats))
    exact = makes or (bool(floats) and positions.issuperset(floats))
    if exact:
        positions.update(tensor.name for tensor in outputs)
    if kind == "CONSTANT" or (inputs and not exact and constants.issuperset(tensor.name for tensor in inputs)):
        constants.update(tensor.name for tensor in outputs)
    in_bytes = [tensor.name in rounded for tensor in inputs]
    if kind == "DEQUANTIZE" or (kind in MOVES and in_bytes and in_bytes[0] and kind != "QUANTIZE"):
        rounded.update(tensor.name for tensor in outputs)
    return Layer(
        name=layer.name,
        type=kind,
        node=node,
        operator=operator,
        inputs=[type_name(trt, tensor.dtype) for tensor in inputs],
        outputs=given,
        positions=exact,
        int8=_int8(in_bytes) if kind in PRODUCTS else "none",
    )


def _int8(in_bytes: Sequence[bool]) -> Literal["none", "weights", "all"]:
    """Of a product of two operands; where the second is a constant, a convolution may hold it itself."""
    first, second = (*in_bytes, False)[:2]
    return "all" if first and second else "weights" if second else "none"


def read_nodes(graph: Path) -> Nodes:
    """The nodes of an ONNX file."""
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    return Nodes({node.name: node.op_type for node in nodes}, {value: node.name for node in nodes for value in node.output if value})


def count_precisions(layers: Iterable[Layer]) -> dict[str, Counter[str]]:
    """How many layers there are of each operator, by precision; those that only move values are left out."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.computes:
            counts.setdefault(layer.operator or layer.type.lower(), Counter())[layer.precision] += 1
    return counts


def is_island(half: Half, layer: Layer) -> bool:
    """Whether the spec of a stage keeps a layer in float32: by its operator, by its module, or because it computes positions."""
    return layer.positions or layer.operator in half.operators or layer.node.startswith(tuple(kept_name(one, "") for one in half.modules))


def undeclared(stage: StageSpec, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that compute in float32 without being on an island of the stage's half precision."""
    if (half := stage.half) is None:
        return []
    return [layer for layer in layers if layer.computes and layer.precision == "float32" and not is_island(half, layer)]
