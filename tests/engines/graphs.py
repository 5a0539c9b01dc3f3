"""Small ONNX graphs, and the stages that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

BATCH, LENGTH = Axis("batch", 1, 1, 64), Axis("length", 1, 8, 1 << 20)
FLOAT, HALF, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64
WIDTH = 4


def stage_of(*, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",), half: Any = None) -> StageSpec:
    """A stage whose tensors are all float32 [batch, 2*length+1, 4]."""

    def floats(name: str) -> TensorSpec:
        return TensorSpec(name, "float32", (BATCH, LENGTH * 2 + 1, WIDTH))

    return StageSpec("small", "", tuple(map(floats, inputs)), tuple(map(floats, outputs)), Tolerance(1e-5), half=half)


def node(operator: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(operator, inputs, outputs, name=name, **attributes)


def write_graph(path: Path, nodes: list[Any], types: dict[str, int] | None = None, outputs: tuple[str, ...] = ("y",)) -> Path:
    """An ONNX file; `types`: of inputs and outputs, x and y in float32 by default."""
    known = types or {"x": FLOAT, "y": FLOAT}
    values = {name: onnx.helper.make_tensor_value_info(name, kind, ["batch", "2*length+1", WIDTH]) for name, kind in known.items()}
    graph = onnx.helper.make_graph(
        nodes, "small", [value for name, value in values.items() if name not in outputs], [values[name] for name in outputs]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10), path)
    return path
