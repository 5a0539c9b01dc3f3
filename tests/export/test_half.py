"""Half precision: what every value's type is, where the islands are, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import ConfigError, VerificationError
from musicrt.runtime.precision import FLOAT32_OPERATORS, Half, Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from musicrt.runtime.verify import probe_inputs, relative_error
from tests.conftest import refused
from tests.export.graph_types import assert_typed, float_types, nodes_of

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402 - needs what was asked for above
from torch.nn import functional as F  # noqa: E402

from musicrt.export import stages as writing  # noqa: E402
from musicrt.export.graphs import trace_stage, write_weights  # noqa: E402
from musicrt.export.half import to_half  # noqa: E402
from musicrt.export.rounding import round_values  # noqa: E402
from musicrt.runtime.backends.onnxruntime import OnnxCpu  # noqa: E402
from musicrt.runtime.backends.torch import TorchSession  # noqa: E402
from musicrt.runtime.layers import attend_cached  # noqa: E402

BATCH, COLUMNS = Axis("batch", 1, 1, 8), Axis("columns", 1, 4, 64)
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
WIDTH = 32


def floats(name: str, *shape: Any) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


STAGE = StageSpec("small", "", (floats("x", BATCH, COLUMNS, WIDTH),), (floats("y", BATCH, COLUMNS, WIDTH),), Tolerance(1e-5))


class Small(nn.Module):
    """Two layers around a norm, with positions, and a last layer whose name a spec may know."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.rates = nn.Parameter(torch.linspace(0.1, 300.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + torch.sin(torch.arange(x.shape[1], dtype=torch.float32)[:, None] * self.rates)
        y = self.second(self.norm(x).transpose(1, 2).transpose(1, 2))
        result: Tensor = torch.tanh(self.last(x + y))
        return result


def trace(stage: StageSpec, module: nn.Module, **sizes: int) -> Any:
    return trace_stage(stage, module.eval().requires_grad_(False), probe_inputs(stage, {"batch": 2, "columns": 5} | sizes, 1), "trt")


@pytest.fixture(scope="module")
def small() -> Any:
    return trace(STAGE, Small())


# Small modules


def test_types_are_half_but_on_islands(small: Any) -> None:
    assert_typed(small, STAGE)
    kinds = {kind: {dtype for node in nodes_of(small, kind) for dtype in float_types(node)} for kind in ("MatMul", "Add", "Tanh")}
    assert kinds == {"MatMul": {HALF}, "Add": {HALF}, "Tanh": {HALF}}
    assert float_types(nodes_of(small, "LayerNormalization")[0]) == {FLOAT}


def test_inputs_and_outputs_keep_their_types(small: Any) -> None:
    assert [(value.name, value.dtype) for value in (*small.graph.inputs, *small.graph.outputs)] == [("x", FLOAT), ("y", FLOAT)]
    assert [str(dim) for dim in small.graph.outputs[0].shape] == ["batch", "columns", str(WIDTH)]


def test_tensors_between_stages_may_be_half(tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, half=Half(tensors=("x", "y")))
    model = trace(stage, Small())
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [("x", HALF), ("y", HALF)]
    assert_typed(model, stage)
    feeds = probe_inputs(stage, {"batch": 3, "columns": 7}, 2)
    found = run_rounded(stage, model, {"x": feeds["x"].astype(np.float16)}, tmp_path / "r.onnx")
    assert found["y"].dtype == np.float16
    assert relative_error(found, TorchSession(STAGE, Small().eval()).run(feeds)) < 1e-3


def test_positions_are_float32_until_they_meet_half(small: Any) -> None:
    """At 300 radians per position, float16 would be off by a quarter of a turn from the tenth on."""
    (sine,) = nodes_of(small, "Sin")
    (angles,) = (value.producer() for value in sine.inputs)
    assert (angles.op_type, float_types(angles), float_types(sine)) == ("Mul", {FLOAT}, {FLOAT})
    assert [node.op_type for node, _ in sine.outputs[0].uses()] == ["Cast"]


def test_a_value_is_cast_once_however_often_it_is_used(small: Any) -> None:
    """x, the positions, the sum for the norm, the norm, and y: x + y takes the sum as it is."""
    names = [node.inputs[0].name for node in nodes_of(small, "Cast") if float_types(node) == {HALF, FLOAT}]
    assert len(names) == 5
    assert len(set(names)) == 5


def test_values_between_islands_are_not_rounded() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = F.softmax(F.layer_norm(x, (WIDTH,)).transpose(1, 2).flatten(1), -1)
            return weights.reshape(x.shape[0], WIDTH, -1).transpose(1, 2)

    model = trace(STAGE, Twice())
    assert [node.name for node in nodes_of(model, "Cast") if HALF in float_types(node)] == []


def test_modules_stay_float32_by_name() -> None:
    stage = dataclasses.replace(STAGE, half=Half(operators=(*FLOAT32_OPERATORS, "Tanh"), modules=("last",)))
    model = trace(stage, Small())
    assert_typed(model, stage)
    assert [float_types(node) for node in nodes_of(model, "MatMul")] == [{HALF}, {HALF}, {FLOAT}]
    assert float_types(nodes_of(model, "Tanh")[0]) == {FLOAT}
    assert all(not node.metadata_props for node in model.graph)
    kept = [node for node in model.graph if str(node.name).startswith("float32:")]
    assert {str(node.name).split("/")[0] for node in kept} == {"float32:last"}
    assert [node.op_type for node in kept if node.op_type == "MatMul"] == ["MatMul"]
    assert {dtype for node in kept for dtype in float_types(node)} == {FLOAT}


def test_module_that_is_not_there_is_refused() -> None:
    with refused(ConfigError, "stage small", "'lost'"):
        trace(dataclasses.replace(STAGE, half=Half(modules=("last", "lost"))), Small())


def test_stage_without_half_stays_as_it_is() -> None:
    model = trace(dataclasses.replace(STAGE, half=None), Small())
    assert {dtype for node in model.graph for dtype in float_types(node)} == {FLOAT}


@pytest.mark.parametrize("shared", [False, True])
def test_constant_is_stored_once(shared: bool, tmp_path: Path) -> None:
    """In half where only half nodes use it; one that an island uses too stays float32, and is cast for the others."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 1024))

        def forward(self, x: Tensor) -> Tensor:
            y = x.tile(1, 1, 1024 // WIDTH) * self.weight
            return (F.layer_norm(y, (1024,), self.weight) if shared else y.tanh())[..., :WIDTH]

    module = Scaled()
    model = trace(STAGE, module)
    beside, path = tmp_path / "weights.safetensors", tmp_path / "half.safetensors"
    write_weights(beside, dict(module.named_parameters()), {})
    write_weights(path, {}, {"small": model}, beside=beside)
    from safetensors.numpy import load_file

    stored = load_file(path)
    places = [value.const_value for value in model.graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor)]
    assert [place.location for place in places] == ([beside.name] if shared else [path.name])
    assert {name: str(array.dtype) for name, array in stored.items()} == ({} if shared else {"graph.small.stage.weight": "float16"})
    np.testing.assert_array_equal(places[0].numpy(), module.weight.detach().numpy().astype(places[0].numpy().dtype))


# What can't be half


def make_model(nodes: list[Any], **initializers: np.ndarray) -> Any:
    """A graph x -> y of nodes."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [[helper.make_tensor_value_info(name, kind, ["n", 4])] for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "graph", *ends, constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11))


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), name=f"the_{kind}", **attributes)


REFUSED: dict[str, tuple[list[Any], str]] = {
    "no float16": ([node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")], "the_DynamicQuantizeLinear"),
    "another domain": ([node("FusedGemm", "x x", "y", domain="com.microsoft")], "com.microsoft"),
    "values of its own": ([node("RandomNormalLike", "x", "y")], "the_RandomNormalLike"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operator_without_half_precision_is_refused(name: str) -> None:
    nodes, word = REFUSED[name]
    model = make_model(nodes)
    for value in (value for node in model.graph for value in node.outputs if value.dtype is None and value.name in ("y", "s")):
        value.dtype = FLOAT
    with refused(ConfigError, "stage small", "node the_", word):
        to_half(STAGE, Half(), model)


@pytest.mark.parametrize(("value", "word"), [(7e4, "7e+04"), (1e-9, "1e-09")])
def test_constant_that_half_can_not_hold_is_refused(value: float, word: str) -> None:
    def model() -> Any:
        return make_model([node("Mul", "x c", "y")], c=np.array([value], np.float32))

    with refused(ConfigError, "stage small", "constant c", "the_Mul", word):
        to_half(STAGE, Half(), model())
    to_half(STAGE, Half(operators=("Mul",)), model())


def test_graph_whose_types_do_not_fit_is_refused() -> None:
    model = make_model([node("Mul", "x c", "y")], c=np.ones(1, np.float32))
    to_half(STAGE, Half(), model)
    (cast,) = (one for one in model.graph if one.op_type == "Cast" and one.outputs[0].dtype == HALF)
    next(one for one in model.graph if one.op_type == "Mul").replace_input_with(0, cast.inputs[0])
    from musicrt.export.types import check_types

    with refused(ConfigError, "stage small", "the_Mul"):
        check_types("small", model)


# Errors as they would be on a GPU


def run_rounded(stage: StageSpec, model: Any, feeds: dict[str, np.ndarray], path: Path, *, rounded: bool = True) -> Any:
    ir.save(round_values(model) if rounded else model, path)
    with OnnxCpu(threads=1).open_graph(stage.in_flavour("trt"), path) as session:
        return session.run(feeds)


def test_every_value_is_rounded(tmp_path: Path) -> None:
    """ONNX Runtime by itself computes all of this in float32, and shows neither the lost digits nor the overflow."""
    model = make_model([node("Mul", "x c", "a"), node("Add", "a c", "b"), node("Sub", "b c", "y")], c=np.array([2048.0], np.float32))
    stage = StageSpec("small", "", (floats("x", BATCH, 4),), (floats("y", BATCH, 4),), Tolerance(1e-5))
    to_half(stage, Half(), model)
    x = np.array([[1.0, 0.10006, 30.0, 64.0]], np.float32)
    with np.errstate(over="ignore"):
        expected = ((x.astype(np.float16) * np.float16(2048.0) + np.float16(2048.0)) - np.float16(2048.0)).astype(np.float32)
    assert expected[0, 3] == np.inf
    np.testing.assert_array_equal(run_rounded(stage, model, {"x": x}, tmp_path / "r.onnx")["y"], expected)
    plain = run_rounded(stage, model, {"x": x}, tmp_path / "p.onnx", rounded=False)["y"]
    np.testing.assert_allclose(plain, x * 2048.0, rtol=1e-4)


def test_error_is_that_of_half_precision(small: Any, tmp_path: Path) -> None:
    feeds = probe_inputs(STAGE, {"batch": 3, "columns": 7}, 2)
    expected = TorchSession(STAGE, Small().eval()).run(feeds)
    error = relative_error(run_rounded(STAGE, small, feeds, tmp_path / "r.onnx"), expected)
    assert 2e-4 < error < 1e-3  # some roundings of 2e-4 each


# Caches


class Cached(nn.Module):
    """Self-attention with a cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, length: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = (length + (x.shape[1] - 1)).to(torch.int32).expand(x.shape[0])
        return attend_cached(self.project(x), keys, values, last)


CAPACITY = Axis("capacity", 8, 16, 64, fixed=True)
CACHE = dataclasses.replace(
    STAGE,
    inputs=(*STAGE.inputs, TensorSpec("length", "int64", (1,), values="codes", codes=1)),
    states=tuple(floats(name, BATCH, 4, CAPACITY, WIDTH // 4) for name in ("key", "value")),
)


@pytest.mark.parametrize(("half", "error"), [(None, 1e-6), (Half(), 1e-3)])
def test_cache_gives_what_torch_gives(tmp_path: Path, half: Half | None, error: float) -> None:
    """A prefill, single columns and several at once; what is not filled yet counts for nothing."""
    stage, module = dataclasses.replace(CACHE, half=half), Cached()
    model = trace(stage, module, capacity=12)
    ir.save(model if half is None else round_values(model), tmp_path / "cache.onnx")
    typed = stage.in_flavour("trt")
    dtype = "float32" if half is None else "float16"
    assert [state.dtype for state in typed.states] == [dtype, dtype]
    assert {str(value.dtype) for value in model.graph.outputs[1:]} == {"FLOAT" if half is None else "FLOAT16"}
    with OnnxCpu(threads=1).open_graph(typed, tmp_path / "cache.onnx") as session, TorchSession(stage, module.eval()) as reference:
        feeds = probe_inputs(stage, {"batch": 2, "columns": 1, "capacity": 12}, 3)
        own = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in typed.feeds}
        length = 0
        for columns in (4, 1, 1, 3):
            x = np.random.default_rng(length).standard_normal((2, columns, WIDTH), np.float32)
            for given in (feeds, own):
                given.update(x=x, length=np.array([length]))
            expected = reference.run(feeds)
            assert relative_error(session.run(own), expected) < error
            length += columns
            for name in ("key", "value"):
                assert relative_error({name: own[name]}, {name: feeds[name]}) < error
        untouched = probe_inputs(stage, {"batch": 2, "columns": 1, "capacity": 12}, 3)["key"][:, :, length:].astype(dtype)
        np.testing.assert_array_equal(own["key"][:, :, length:], untouched)


def test_half_that_is_too_far_from_torch_is_refused(tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, half=Half(tolerance=1e-5))
    model, path = trace(stage, Small()), tmp_path / "stages" / "small.trt.onnx"
    path.parent.mkdir()
    with refused(VerificationError, "stage small", "trt", "allowed 1e-05"):
        writing._write_stage(tmp_path, path, stage, Small().eval(), model, "trt")
    assert list(path.parent.iterdir()) == [path]
