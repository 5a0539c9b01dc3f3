"""Pairs of QuantizeLinear and DequantizeLinear in graphs of half precision: on small graphs, against the same in NumPy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.precision import Int8, Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, floats

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as ort

from musicrt.calibration.engine_graphs import EngineGraph, EngineWeights, half_scales

CHANNELS, LENGTH = 8, 16
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
STAGE = StageSpec(
    "small", "", (floats("x", Axis("batch", 1, 1, 4), CHANNELS, LENGTH),), (floats("y", 1, CHANNELS, LENGTH),), Tolerance(1e-5), int8=Int8()
)


def random(*shape: int, seed: int) -> Any:
    """The first output channel has weights of which the scale is no normal number in half precision."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    weight[0] *= np.float16(1e-3)
    return weight


WEIGHTS = {
    "stage.first.weight": random(CHANNELS, CHANNELS, 1, seed=1),
    "stage.second.weight": random(CHANNELS, CHANNELS, 1, seed=2),
    "stage.last.weight": random(CHANNELS, CHANNELS, 1, seed=3).astype(np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two convolutions of one half value, their sum through one in float32."""

    def conv(given: str, weight: str, made: str) -> Any:
        return onnx.helper.make_node("Conv", [given, weight], [made], f"node_{made}")

    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["x.half"], "narrow", to=HALF),
        conv("x.half", "stage.first.weight", "a"),
        conv("x.half", "stage.second.weight", "b"),
        onnx.helper.make_node("Add", ["a", "b"], ["c"], "sum"),
        onnx.helper.make_node("Cast", ["c"], ["c.float"], "widen", to=FLOAT),
        conv("c.float", "stage.last.weight", "y"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, FLOAT, ["batch", CHANNELS, LENGTH]) for name in "xy"]
    graph = onnx.helper.make_graph(
        nodes, "small", ends[:1], ends[1:], [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def run(model: Any, x: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def rounded(values: Any, scale: Any) -> Any:
    return np.clip(np.rint(values.astype(np.float32) / scale), -127, 127) * scale


def test_layers_in_half_precision_compute_with_what_8_bits_hold(path: Path) -> None:
    graph = EngineGraph(STAGE, path)
    assert [layer.name for layer in graph.layers] == ["first", "second"]  # the last stays float32
    assert graph.values_of(graph.layers) == ["x.half"]
    model = graph.lower(graph.layers, {"x.half": (-2.0, 4.0)})
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node) == {
        "QuantizeLinear": 1, "DequantizeLinear": 3, "Cast": 2, "Conv": 3, "Add": 1
    }  # fmt: skip
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    assert {str(array.dtype) for name, array in stored.items() if name.endswith(".int8")} == {"int8"}
    assert {str(array.dtype) for name, array in stored.items() if name.endswith(".scale")} == {"float16"}
    assert not {name for name in stored if name in ("stage.first.weight", "stage.second.weight")}

    x = np.random.default_rng(4).standard_normal((1, CHANNELS, LENGTH), np.float32)
    x[0, 0, 0] = 9.0  # which is cut off
    given = rounded(x.astype(np.float16), np.float32(half_scales(np.array(4.0, np.float32))))
    total = 0.0
    for name in ("first", "second"):
        weight = WEIGHTS[f"stage.{name}.weight"].astype(np.float32)
        scales = half_scales(np.abs(weight).max((1, 2))).astype(np.float32)[:, None, None]
        assert scales[0] < np.finfo(np.float16).tiny
        total = total + np.einsum("oik,bil->bol", rounded(weight, scales), given)
    expected = np.einsum("oik,bil->bol", WEIGHTS["stage.last.weight"], total)
    produced = run(model, x)
    assert np.linalg.norm(produced - expected) < 3e-3 * np.linalg.norm(expected)  # what comes out of a pair is in half precision
    exact = run(graph.model, x)
    assert np.linalg.norm(produced - exact) > 5e-3 * np.linalg.norm(exact)


def test_weights_alone_leave_activations_as_they_are(path: Path) -> None:
    graph = EngineWeights(STAGE, path)
    assert graph.values_of(graph.layers) == []
    model = graph.lower(graph.layers[:1], {})
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node) == {"DequantizeLinear": 1, "Cast": 2, "Conv": 3, "Add": 1}
    x = np.random.default_rng(4).standard_normal((1, CHANNELS, LENGTH), np.float32)
    produced, exact = run(model, x), run(graph.model, x)
    assert 1e-4 < np.linalg.norm(produced - exact) / np.linalg.norm(exact) < 1e-2


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "axis"),
    [
        ("Conv", (6, 3, 2), {"group": 2}, 0),
        ("ConvTranspose", (8, 6, 4), {"strides": [2]}, 1),
        ("Gemm", (6, 16), {"transB": 1}, 0),
        ("Gemm", (16, 6), {}, 1),
        ("MatMul", (16, 6), {}, 1),
    ],
)
def test_every_output_channel_has_a_scale(tmp_path: Path, operator: str, shape: tuple[int, ...], attributes: Any, axis: int) -> None:
    weight = random(*shape, seed=5)
    given = [4, 16] if operator == "Gemm" else [1, shape[0] if operator == "ConvTranspose" else 6, 16]
    node = onnx.helper.make_node(operator, ["x", "stage.layer.weight"], ["y"], "node", **attributes)
    ends = [onnx.helper.make_tensor_value_info("x", HALF, given), onnx.helper.make_tensor_value_info("y", HALF, None)]
    graph = onnx.helper.make_graph([node], "small", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "stage.layer.weight")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10), tmp_path / "a.onnx")
    engine = EngineGraph(STAGE, tmp_path / "a.onnx")
    model = engine.lower(engine.layers, {"x": (-3.0, 3.0)})
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    (scales,) = (array for name, array in stored.items() if "weight" in name and name.endswith(".scale"))
    (integers,) = (array for name, array in stored.items() if "weight" in name and name.endswith(".int8"))
    assert (integers.shape, scales.shape) == (shape, (6,))
    others = tuple(index for index in range(len(shape)) if index != axis)
    assert np.abs(integers.astype(int)).max(others).min() >= 64  # each channel uses its range
    x = np.random.default_rng(6).standard_normal(given).astype(np.float16)
    produced, exact = run(model, x), run(engine.model, x)
    assert 1e-3 < np.linalg.norm((produced - exact).astype(np.float32)) / np.linalg.norm(exact.astype(np.float32)) < 3e-2


def test_scales_are_rounded_so_that_nothing_is_cut_off() -> None:
    largest = np.abs(np.random.default_rng(7).standard_normal(1000, np.float32)) * np.logspace(-4, 3, 1000, dtype=np.float32)
    scales = half_scales(largest)
    assert scales.dtype == np.float16
    assert (scales.astype(np.float32) * 127 >= largest * (1 - 1e-6)).all()
    assert (scales.astype(np.float64) * 127 <= largest * (1 + 1e-3) + 127 * 2.0**-24).all()
    assert half_scales(np.array([0.0], np.float32)) == np.float16(2.0**-24)
