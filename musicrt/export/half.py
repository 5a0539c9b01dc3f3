"""From a traced float32 graph to one in half precision: float16 everywhere but on the islands that the spec names.

TensorRT's networks are strongly typed: what a value's type is in the graph, it is in the engine, and no operator may mix types. So every
value gets a type here, and a Cast stands wherever the two meet, one for each value that is wanted in both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from musicrt.export.types import check_standard, check_types, float_places, infer_types, tensors_of
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.precision import TRT, Half, is_pin, kept_name
from musicrt.runtime.spec import StageSpec, updated_name

Kind = Literal["half", "float", "layout", "none"]

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
LAYOUT = frozenset(
    (
        *("Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that only move values: they stay float32 where what comes before and behind is, so that nothing is rounded in between."""
_ANY = frozenset(("Shape", "Size", "Cast", "IsNaN", "IsInf"))
"""Operators that take a value as it comes: none is cast for them."""


def to_half(stage: StageSpec, half: Half, model: ir.Model) -> None:
    """Give every value of a graph its type, in place. Inputs and outputs keep those that the spec has for it.

    Needs the names of modules that the exporter notes at nodes; what stays float32 because of its module has that in its own name from then
    on (`kept_name`), as engines are built from graphs alone. Raises ConfigError: an operator that has no half precision, or a constant
    that half precision can't hold, by stage and node.
    """
    kinds = choose_kinds(stage, half, model)
    _Rewriter(stage.name, model, kinds, _half_ends(stage)).rewrite()
    check_types(stage.name, model)


def choose_kinds(stage: StageSpec, half: Half, model: ir.Model) -> dict[ir.Node, Kind]:
    """What each node is to compute in: "half" or "float", or "none" where it has nothing to do with floats. Types are not changed yet.

    Errors as of `to_half`.
    """
    check_standard(stage.name, model)
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    RemoveUnusedNodesPass()(model)
    infer_types(stage.name, model)
    return _choose_kinds(stage, half, model)


def _choose_kinds(stage: StageSpec, half: Half, model: ir.Model) -> dict[ir.Node, Kind]:
    """What each node computes in; layout nodes are settled as "half" or "float" as well, "none" has nothing to do with floats."""
    kinds: dict[ir.Node, Kind] = {}
    exact: set[ir.Node] = set()
    unused = set(half.modules)
    for node in model.graph:
        if not any(value.dtype == _FLOAT for value in tensors_of(node)):
            kinds[node] = "none"
            continue
        named = [module for module in half.modules if _is_in(node, module)]
        unused -= set(named)
        if _is_exact(node, exact):
            exact.add(node)
        if named or node.op_type in half.operators or node in exact:
            kinds[node] = "float"
        else:
            kinds[node] = "layout" if node.op_type in LAYOUT else "half"
        if kinds[node] == "half" and (reason := float_places(node).obstacle):
            raise ConfigError(
                f"stage {stage.name}: node {node.name} can't be in half precision: {reason}; "
                f"declare {node.op_type} or its module as float32 in the spec of the stage"
            )
        if named:
            node.name = kept_name(named[0], str(node.name))
    if unused:
        first = min(unused)
        if is_pin(first):
            raise ConfigError(
                f"stage {stage.name}: a calibration pinned {first!r}, and this version exports no such node; "
                "calibrate again with: musicrt calibrate BUNDLE --target gpu-fp16"
            )
        raise ConfigError(f"stage {stage.name}: the spec keeps {first!r} in float32, but no node comes from such a module")
    _settle_layout(kinds, _half_ends(stage))
    return kinds


def _is_in(node: ir.Node, module: str) -> bool:
    """Whether a node comes from a module of the stage (`network.conv_post`), or one inside of that; or is the node of a pin."""
    if is_pin(module):
        scope, _, name = module.rpartition("/")
        return node.name == name and (not scope or _is_in(node, scope))
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    return any(f"'stage.{module}{end}" in scopes for end in ("'", "."))


def _is_exact(node: ir.Node, exact: set[ir.Node]) -> bool:
    """Whether a node makes floats of whole numbers, or goes on with those: positions and their angles go beyond what half tells apart."""
    makers = [value.producer() for value in node.inputs if value is not None and value.dtype == _FLOAT and not value.is_initializer()]
    if not makers:
        return node.op_type in ("Cast", "Range") and node.outputs[0].dtype == _FLOAT
    return all(maker in exact for maker in makers)


def _half_ends(stage: StageSpec) -> set[str]:
    """What a graph takes and gives in float16, by name."""
    typed = stage.in_flavour(TRT)
    return {
        *(tensor.name for tensor in (*typed.feeds, *typed.outputs) if tensor.dtype == "float16"),
        *(updated_name(state.name) for state in typed.states),
    }


def _settle_layout(kinds: dict[ir.Node, Kind], ends: set[str]) -> None:
    """Layout nodes stay float32 where all floats that come in and all uses of what goes out are; the others become half."""
    kept = {node for node, kind in kinds.items() if kind == "layout"}

    def is_float(node: ir.Node) -> bool:
        return node in kept or kinds[node] in ("float", "none")

    def comes_as_float(value: ir.Value) -> bool:
        maker = value.producer()
        return value.name not in ends if maker is None else is_float(maker)

    def stays(node: ir.Node) -> bool:
        floats = [value for value in node.inputs if value is not None and value.dtype == _FLOAT and not value.is_initializer()]
        users = [user for value in node.outputs for user, _ in value.uses()]
        return all(comes_as_float(value) for value in floats) and all(is_float(user) or user.op_type in _ANY for user in users)

    while dropped := {node for node in kept if not stays(node)}:
        kept -= dropped
    for node, kind in kinds.items():
        if kind == "layout":
            kinds[node] = "float" if node in kept else "half"


class _Rewriter:
    """Gives types to values and puts casts between them."""

    def __init__(self, stage: str, model: ir.Model, kinds: dict[ir.Node, Kind], ends: set[str]) -> None:
        self.stage, self.graph, self.kinds, self.ends = stage, model.graph, kinds, ends
        self._casts: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        """Constants, then nodes in their order, then what the graph gives."""
        halves = [value for value in self.graph.initializers.values() if value.dtype == _FLOAT and self._all_half(value)]
        for value in halves:
            self._round(value)
        for value in self.graph.inputs:
            if value.name in self.ends:
                value.dtype = _HALF
        for node in list(self.graph):
            self._type(node)
        for index, value in enumerate(self.graph.outputs):
            self._give(index, value)

    def _all_half(self, value: ir.Value) -> bool:
        uses = list(value.uses())
        return bool(uses) and all(index in self._wanted(node) for node, index in uses) and not value.is_graph_output()

    def _wanted(self, node: ir.Node) -> tuple[int, ...]:
        """The inputs that a node wants in half precision, if they are floats."""
        return float_places(node).inputs if self.kinds[node] == "half" and node.op_type not in _ANY else ()

    def _round(self, value: ir.Value) -> None:
        if value.const_value is None:
            raise ConfigError(f"stage {self.stage}: constant {value.name} has no value; trace the stage again")
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16)
        user = next(iter(value.uses()))[0].name
        if not np.isfinite(rounded[np.isfinite(array)]).all():
            raise ConfigError(
                f"stage {self.stage}: constant {value.name} of node {user} holds {np.abs(array).max():.3g}, more than half precision does "
                "(65504); declare the node's operator or module as float32 in the spec of the stage"
            )
        if array.size == 1 and array.item() != 0.0 and rounded.item() == 0.0:
            raise ConfigError(
                f"stage {self.stage}: constant {value.name} of node {user} is {array.item():.3g}, which is 0 in half precision; "
                "declare the node's operator or module as float32 in the spec of the stage"
            )
        value.const_value = ir.Tensor(rounded, name=value.name)
        value.dtype = _HALF

    def _type(self, node: ir.Node) -> None:
        """Cast what a node is given, and type what it gives."""
        if node.op_type in _ANY or self.kinds[node] == "none":
            return
        wanted = self._wanted(node)
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF):
                continue
            dtype = _HALF if index in wanted else _FLOAT
            if value.dtype != dtype:
                node.replace_input_with(index, self._cast(value, dtype))
        if self.kinds[node] == "half":
            for index in float_places(node).outputs:
                if index < len(node.outputs) and node.outputs[index].dtype == _FLOAT:
                    node.outputs[index].dtype = _HALF
            if node.op_type == "ConstantOfShape":
                node.attributes["value"] = ir.AttrTensor(
                    "value", ir.tensor(node.attributes["value"].as_tensor().numpy().astype(np.float16))
                )

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The same value in the other type: each is cast once, right where it is made."""
        if value not in self._casts:
            name = f"{value.name}.{'half' if dtype == _HALF else 'float'}"
            node = _cast_node(value, dtype, name)
            maker = value.producer()
            if maker is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(maker, node)
            self._casts[value] = node.outputs[0]
        return self._casts[value]

    def _give(self, index: int, value: ir.Value) -> None:
        """An output in the type of the spec, under its own name."""
        dtype = _HALF if value.name in self.ends else _FLOAT
        if value.dtype == dtype or value.dtype not in (_FLOAT, _HALF):
            return
        name, value.name = value.name, f"{value.name}.{'float' if dtype == _HALF else 'half'}"
        node = _cast_node(value, dtype, str(name))
        self.graph.append(node)
        self.graph.outputs[index] = node.outputs[0]


def _cast_node(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, dtype, value.shape
    return node
