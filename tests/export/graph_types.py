"""What tests of half precision ask of a graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

from musicrt.runtime.spec import StageSpec

ONNX_HALF, ONNX_FLOAT = 10, 1  # of TensorProto; equal to the members of onnx_ir.DataType


def nodes_of(model: Any, kind: str) -> list[Any]:
    return [node for node in model.graph if node.op_type == kind]


def float_types(node: Any) -> set[Any]:
    return {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype in (ONNX_HALF, ONNX_FLOAT)}


def assert_typed(model: Any, stage: StageSpec) -> None:
    """No operator mixes types, casts stand between the two only, and no value is cast twice."""
    half = stage.half
    assert half is not None
    cast = Counter[tuple[str, Any]]()
    for node in model.graph:
        types = float_types(node)
        if node.op_type == "Cast":
            if types == {ONNX_HALF, ONNX_FLOAT}:
                (value,) = node.inputs
                cast[value.name, node.outputs[0].dtype] += 1
                maker = value.producer()
                assert maker is None or maker.op_type != "Cast" or float_types(maker) != {ONNX_HALF, ONNX_FLOAT}, "back and forth"
                assert list(node.outputs[0].uses()) or node.outputs[0].is_graph_output()
            continue
        assert node.op_type in ("Resize",) or len(types) <= 1, node.name
        if node.op_type in half.operators:
            assert types <= {ONNX_FLOAT}, node.name
    assert [name for name, count in cast.items() if count > 1] == []
