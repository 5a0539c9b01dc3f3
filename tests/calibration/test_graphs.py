"""Reading the constants of a graph: where they lie in the file of weights, whatever names that file has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.errors import BundleError
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import floats
from tests.conftest import refused

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from musicrt.calibration.graphs import StageGraph  # noqa: E402 - needs what was asked for above
from musicrt.calibration.weights import find_linears  # noqa: E402

ROWS, COLUMNS = 64, 96
STAGE = StageSpec("small", "", (floats("x", 1, ROWS),), (floats("y", 1, COLUMNS),), Tolerance(1e-5))
WEIGHTS = {
    name: np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(dtype)
    for seed, (name, dtype) in enumerate({"whole": np.float32, "half": np.float16}.items())
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Products with two matrices that lie behind each other in one file."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size]) for name, size in (("x", ROWS), ("y", COLUMNS)))
    nodes = [
        onnx.helper.make_node("Cast", ["half"], ["wide"], "widen", to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["x", "wide"], ["a"], "first"),
        onnx.helper.make_node("MatMul", ["x", "whole"], ["b"], "second"),
        onnx.helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    graph = onnx.helper.make_graph(nodes, "small", [x], [y], [onnx.numpy_helper.from_array(a, name) for name, a in WEIGHTS.items()])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return tmp_path / "a.onnx"


def _link(weights: Path) -> None:
    os.link(weights, weights.with_name("same"))


def _move_away(weights: Path) -> None:
    weights.rename(weights.with_name("real"))
    weights.symlink_to("real")


@pytest.mark.parametrize("change", [lambda _: None, _link, _move_away])
def test_weights_are_read_whatever_names_their_file_has(path: Path, change: Callable[[Path], None]) -> None:
    change(path.with_name("weights"))
    graph = StageGraph(STAGE, path)
    assert [layer.node for layer in graph.layers] == ["first", "second"]
    for name, expected in WEIGHTS.items():
        found = graph.constant(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(graph.constant("wide"), WEIGHTS["half"].astype(np.float32))
    (linear,) = find_linears(ir.load(path))
    np.testing.assert_array_equal(linear.matrix(), WEIGHTS["whole"].T)


def test_weights_that_are_cut_off_are_refused(path: Path) -> None:
    weights = path.with_name("weights")
    os.truncate(weights, weights.stat().st_size - 2)
    with refused(BundleError, "weights ends before", "[64, 96]", "copy the whole folder again"):
        StageGraph(STAGE, path).constant("half")
