"""Weights that are stored in half precision and computed with in single."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
import onnx_ir as ir
import onnxruntime as ort
import torch
from safetensors.numpy import load_file

import musicrt
from musicrt.export.compact import as_half, compact_constants, round_weights
from musicrt.export.graphs import write_weights

HALVES = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
THIRDS = np.arange(12, dtype=np.float32).reshape(3, 4) / 3


def make_model(values: np.ndarray) -> ir.Model:
    """y = x @ values."""
    floats = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=floats, shape=ir.Shape([2, 3]))
    weight = ir.Value(name="w", type=floats, shape=ir.Shape(values.shape), const_value=ir.tensor(values))
    node = ir.node("MatMul", [x, weight])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", floats, ir.Shape([2, values.shape[1]])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("values", "least", "halved"), [(HALVES, 0, True), (HALVES, 1024, False), (THIRDS, 0, False), (HALVES * 1e6, 0, False)]
)
def test_constants_are_halved_where_that_loses_nothing(values: np.ndarray, least: int, halved: bool, tmp_path: Path) -> None:
    model = make_model(values)
    compact_constants(model, least)
    (constant,) = model.graph.initializers.values()
    assert (constant.dtype == ir.DataType.FLOAT16) == halved
    ir.save(model, tmp_path / "a.onnx")
    x = np.ones((2, 3), np.float32)
    (y,) = ort.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x @ values, rtol=1e-6)


def test_graph_and_module_share_what_is_stored(tmp_path: Path) -> None:
    model, values = make_model(np.tile(HALVES, (1, 100))), torch.from_numpy(np.tile(HALVES, (1, 100)))
    compact_constants(model, 1024)
    write_weights(tmp_path / "weights.safetensors", {"layer": as_half(values)}, {"a": model})
    stored = load_file(tmp_path / "weights.safetensors")
    assert {name: value.dtype for name, value in stored.items()} == {"layer": np.float16}


def test_weights_are_rounded_in_place() -> None:
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    assert as_half(layer.weight.detach()).dtype == torch.float32
    round_weights([layer])
    assert layer.weight.dtype == torch.float32
    assert as_half(layer.weight.detach()).dtype == torch.float16
    torch.testing.assert_close(layer.weight.detach(), before, rtol=1e-3, atol=1e-6)


def test_the_embedded_bundle_has_its_weights_in_half() -> None:
    bundle = musicrt.Bundle.open(musicrt.EMBEDDED)
    assert bundle.manifest.weights.bytes < 8e6
    weights = load_file(bundle.weights)
    sizes = {kind: sum(value.nbytes for value in weights.values() if value.dtype == kind) for kind in (np.float16, np.float32)}
    assert sizes[np.float32] < 0.2 * sizes[np.float16]  # the Fourier basis, mostly
