"""Sessions of ONNX Runtime on a CPU share the memory of their activations: the largest counts, not the sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from musicrt.runtime.backends.onnxruntime import OnnxCpu  # noqa: E402 - needs what was asked for above
from musicrt.runtime.measure import peak_memory_mb, run_isolated  # noqa: E402
from musicrt.runtime.precision import Tolerance  # noqa: E402
from musicrt.runtime.spec import StageSpec  # noqa: E402
from musicrt.runtime.tensors import TensorSpec  # noqa: E402

_VALUES = 25_000_000  # 100 MB of float32
STAGE = StageSpec("wide", "", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),), Tolerance(1e-4))


def run_wide_sessions(path: str, count: int) -> dict[str, float]:
    """In a fresh process: as many sessions, all open, run one after the other."""
    sessions = [OnnxCpu(threads=1).open_graph(STAGE, Path(path)) for _ in range(count)]
    results = [float(session.run({"x": np.full(1, 3, np.float32)})["y"][0]) for session in sessions]
    return {"peak_mb": peak_memory_mb(), "result": results[-1]}


def test_sessions_share_an_arena(tmp_path: Path) -> None:
    path = tmp_path / "wide.onnx"
    write_wide_graph(path)
    alone, together = (run_isolated(f"{__name__}:run_wide_sessions", {"path": str(path), "count": count}) for count in (1, 4))
    assert alone["result"] == together["result"] == pytest.approx(-3, rel=1e-4)
    assert alone["peak_mb"] > 4e-6 * _VALUES
    assert together["peak_mb"] < alone["peak_mb"] + 4e-6 * _VALUES  # of their own each, they would take three times that more


def write_wide_graph(path: Path) -> None:
    """One value -> the mean of `_VALUES` negated copies of it."""
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"]),
        helper.make_node("Neg", ["wide"], ["negated"]),
        helper.make_node("ReduceMean", ["negated"], ["y"], keepdims=1),
    ]
    values = [helper.make_tensor_value_info(name, kind.FLOAT, [1]) for name in "xy"]
    shape = helper.make_tensor("shape", kind.INT64, [1], [_VALUES])
    graph = helper.make_graph(nodes, "wide", values[:1], values[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
