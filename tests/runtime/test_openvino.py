"""OpenVINO: threads, errors, precisions, and the operators that are read in a way of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")

from musicrt.runtime.backends.openvino import OpenvinoCpu, OpenvinoSession  # noqa: E402 - needs what was asked for above
from musicrt.runtime.bundle import Bundle  # noqa: E402
from musicrt.runtime.errors import BackendError  # noqa: E402
from musicrt.runtime.precision import Tolerance  # noqa: E402
from musicrt.runtime.session import Array  # noqa: E402
from musicrt.runtime.spec import StageSpec  # noqa: E402
from musicrt.runtime.tensors import TensorSpec  # noqa: E402
from tests.conftest import ForSystem, refused  # noqa: E402

HAS_BFLOAT16 = OpenvinoCpu.precision_obstacle("bfloat16") is None


def open_graph(path: Path, nodes: list[Any], feeds: dict[str, Array], result: Array, threads: int = 1) -> OpenvinoSession:
    """A session of a graph of these nodes, from the feeds to `y`, of any shape."""
    helper, kinds = onnx.helper, {np.dtype(name): kind for name, kind in (("float32", 1), ("int64", 7))}
    inputs = [
        helper.make_tensor_value_info(name, kinds[x.dtype], x.shape if name == "shape" else [None] * x.ndim) for name, x in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info("y", kinds[result.dtype], [None] * result.ndim)]
    graph = helper.make_graph(nodes, "test", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    tensors = {name: TensorSpec(name, "int64" if x.dtype == np.int64 else "float32", x.shape) for name, x in {**feeds, "y": result}.items()}
    stage = StageSpec("test", "", tuple(tensors[name] for name in feeds), (tensors["y"],), Tolerance(1e-5))
    return OpenvinoCpu(threads=threads).open_graph(stage, path)


@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_absolute_value_of_negative_numbers(tmp_path: Path, kind: str) -> None:
    """Computed, not folded: the CPU's own kernel for whole numbers gives -3 for -3."""
    x = np.array([-3, 0, 5, -1], kind)
    with open_graph(tmp_path / "a.onnx", [onnx.helper.make_node("Abs", ["x"], ["y"])], {"x": x}, x) as session:
        assert session.run({"x": x})["y"].tolist() == [3, 0, 5, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_failure_inside_of_a_call_is_an_error(tmp_path: Path, threads: int) -> None:
    """With one thread too, where OpenVINO's default loses it and gives wrong results."""
    feeds: dict[str, Array] = {"x": np.ones((2, 3), np.float32), "shape": np.array([4, 4], np.int64)}
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])]
    with open_graph(tmp_path / "a.onnx", nodes, feeds, np.ones((4, 4), np.float32), threads) as session:
        with refused(BackendError, "test: OpenVINO failed"):
            session.run(feeds)
        call = session.bind(feeds, {"y": np.zeros((4, 4), np.float32)})
        with refused(BackendError, "test: OpenVINO failed"):
            call()


def test_damaged_graph_is_refused(copy_bundle: Path) -> None:
    bundle = Bundle.open(copy_bundle)
    path, _ = bundle.graph("encoder", "ort")
    path.write_bytes(b"no graph")
    with refused(BackendError, "encoder: OpenVINO failed"):
        OpenvinoCpu().open_graph(bundle.spec.stage("encoder"), path)


def test_stages_are_compiled_in_what_was_asked_for(tiny_bundles: ForSystem) -> None:
    bundle = Bundle.open(tiny_bundles("vidmuse"))
    wanted = {"float32": {"f32"}, "int8": {"f32"}} | ({"bfloat16": {"f32", "bf16"}} if HAS_BFLOAT16 else {})
    for precision, hints in wanted.items():
        backend = OpenvinoCpu(threads=1, precision=precision)  # type: ignore[arg-type]
        found = {stage.name: backend.settings(stage)["INFERENCE_PRECISION_HINT"] for stage in bundle.spec.stages}
        assert set(found.values()) == hints
        assert (found["quantizer"], found["lm"]) == ("f32", "f32")
    with OpenvinoCpu(threads=1).open_session(bundle, "fuse") as session:
        assert session.model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert session.model.get_property("NUM_STREAMS") == 0
    with OpenvinoCpu(threads=2).open_session(bundle, "fuse") as session:
        assert session.model.get_property("INFERENCE_NUM_THREADS") == 2


def integer_layers() -> list[Any]:
    """x through two 1x1 convolutions in integers: the first one's result goes into the second and, rounded to tenths, into a sum."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def constant(name: str, value: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))

    def pair(value: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [value, "tenth", "zero"], [f"{value}.q"]),
            helper.make_node("DequantizeLinear", [f"{value}.q", "tenth", "zero"], [f"{value}.dq"]),
        ]

    weight = np.array([[64, -32], [16, 127]], np.int8)[:, :, None, None]
    return [
        constant("tenth", np.float32(0.1)),
        constant("zero", np.uint8(128)),
        constant("hundredth", np.float32(0.01)),
        constant("integers", weight),
        helper.make_node("DequantizeLinear", ["integers", "hundredth"], ["weight"]),
        *pair("x"),
        helper.make_node("Conv", ["x.dq", "weight"], ["first"]),
        *pair("first"),
        helper.make_node("Conv", ["first.dq", "weight"], ["second"]),
        *pair("second"),
        helper.make_node("Add", ["second.dq", "x"], ["y"]),
    ]


def test_what_no_layer_takes_is_not_rounded(tmp_path: Path) -> None:
    """In graphs of integers; in others nothing is changed."""
    x = np.linspace(-3, 3, 40, dtype=np.float32).reshape(1, 2, 4, 5)
    with open_graph(tmp_path / "a.onnx", integer_layers(), {"x": x}, x) as session:
        rounded = session.run({"x": x})["y"]
        stage = session.stage
    with OpenvinoCpu(threads=1, precision="int8").open_graph(stage, tmp_path / "a.onnx", integers=True) as session:
        found = session.run({"x": x})["y"]
    weight = np.array([[0.64, -0.32], [0.16, 1.27]], np.float32)

    def nearest(values: Any) -> Any:
        return np.clip(np.rint(values / 0.1), -128, 127) * 0.1

    exact = np.einsum("nc,bchw->bnhw", weight, nearest(np.einsum("nc,bchw->bnhw", weight, nearest(x))))
    assert np.abs(nearest(exact) + x - rounded).max() < 1e-5
    assert np.abs(exact + x - found).max() < 0.04, "the rest may be in bfloat16"
    assert np.abs(exact + x - found).mean() < np.abs(exact - nearest(exact)).mean() / 2
