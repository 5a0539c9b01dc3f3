"""One graph -> one plan: what is built, what is refused and in which words."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musicrt.engines.compile import OnPhase, Plan, compile_plan
from musicrt.engines.layers import count_precisions, undeclared
from musicrt.engines.profiles import find_buckets, stage_profiles
from musicrt.runtime.errors import Cancelled, EngineError
from musicrt.runtime.precision import Half, Tolerance
from musicrt.runtime.spec import StageSpec, updated_name
from musicrt.runtime.tensorrt_family import FAMILIES
from musicrt.runtime.tensors import Axis, TensorSpec
from tests.conftest import refused
from tests.engines.graphs import BATCH, FLOAT, HALF, LENGTH, WIDTH, node, onnx, stage_of, write_graph

RTX = FAMILIES["tensorrt-rtx"]
LATENCY = find_buckets(["latency"])
CAST_BACK = node("Cast", ["z"], ["y"], "widen", to=FLOAT)


def build(stage: StageSpec, graph: Path, targets: tuple[str, ...] = ("sm_89",), on_phase: OnPhase | None = None) -> Plan:
    return compile_plan(RTX, stage, graph, stage_profiles(stage, LATENCY), targets=targets, on_phase=on_phase)


def test_plan_of_a_half_graph_with_an_island(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["a"], "narrow", to=HALF),
        node("Tanh", ["a"], ["b"], "bend"),
        node("Cast", ["b"], ["c"], "out", to=FLOAT),
        node("Softmax", ["c"], ["d"], "share", axis=-1),
        node("Cast", ["d"], ["e"], "in", to=HALF),
        node("Sigmoid", ["e"], ["z"], "squash"),
        CAST_BACK,
    ]
    stage = stage_of(half=Half())
    plan = build(stage, write_graph(tmp_path / "a.onnx", nodes), ("sm_86", "sm_89", "sm_120"))
    assert len(plan.data) > 10_000
    assert plan.seconds > 0
    assert plan.activation_bytes is not None
    precisions = count_precisions(plan.layers)
    assert precisions == {"Tanh": {"float16": 1}, "Softmax": {"float32": 1}, "Sigmoid": {"float16": 1}}
    assert {layer.node for layer in plan.layers if layer.operator == "Cast"} == {"narrow", "out", "in", "widen"}
    assert undeclared(stage, plan.layers) == []
    assert [layer.node for layer in undeclared(stage_of(half=Half(operators=("Exp",))), plan.layers)] == ["share"]


def test_types_that_are_mixed_are_refused_with_stage_node_and_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node("Cast", ["x"], ["a"], "narrow", to=HALF), node("Add", ["a", "x"], ["y"], "mix")]
    with caplog.at_level(logging.INFO), refused(EngineError, "small", "'mix'", "Add", "Half and Float"):
        build(stage_of(), write_graph(tmp_path / "a.onnx", nodes))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []  # it is raised, and not logged as well


def test_unsupported_operator_is_refused_with_stage_node_and_reason(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["a"], "narrow", to=FLOAT), node("Foo", ["a"], ["y"], "strange", domain="com.example")]
    with refused(EngineError, "small", "'strange'", "Foo", "not supported"):
        build(stage_of(), write_graph(tmp_path / "a.onnx", nodes))
    with refused(EngineError, "small", "'find'", "NonZero", "not supported"):
        nodes = [node("NonZero", ["x"], ["n"], "find"), node("Identity", ["x"], ["y"], "same")]
        build(stage_of(), write_graph(tmp_path / "b.onnx", nodes))


def test_tensors_have_to_be_those_of_the_spec(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "a.onnx", [node("Tanh", ["x"], ["y"], "bend")], {"x": HALF, "y": HALF})
    with refused(EngineError, "small", "'x'", "float16", "expected float32"):
        build(stage_of(), graph)
    with refused(EngineError, "small", "['x', 'y']", "['other', 'x']"):
        build(stage_of(outputs=("other",)), graph)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph at all")
    with refused(EngineError, "small"):
        build(stage_of(), tmp_path / "a.onnx")


def test_float32_attention_of_several_queries_builds(tmp_path: Path) -> None:
    """There is no fused kernel for it: the layer has to be allowed to fall apart."""
    query, key, value, result = (TensorSpec(name, "float32", (BATCH, 2, LENGTH, 8)) for name in "qkvy")
    stage = StageSpec("attention", "", (query, key, value), (result,), Tolerance(1e-5), half=None)
    values = [onnx.helper.make_tensor_value_info(name, FLOAT, ["batch", 2, "length", 8]) for name in "qkvy"]
    graph = onnx.helper.make_graph([node("Attention", ["q", "k", "v"], ["y"], "attend")], "attention", values[:3], values[3:])
    path = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10), path)
    plan = build(stage, path)
    assert {layer.type: layer.precision for layer in plan.layers if layer.operator == "Attention"}["ATTENTION_OUTPUT"] == "float32"


def test_phases_are_told_and_an_error_of_the_listener_ends_the_build(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "a.onnx", [node("Tanh", ["x"], ["y"], "bend")])
    told: list[tuple[str, int, int]] = []
    build(stage_of(), graph, on_phase=lambda *phase: told.append(phase))
    assert told[0][0] == told[-1][0] == "Building engine"
    assert all(0 <= done <= total for _, done, total in told)
    assert told[-1][1] == told[-1][2] > 0

    def stop(*_: object) -> None:
        raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        build(stage_of(), graph, on_phase=stop)


def test_positions_are_no_undeclared_island(tmp_path: Path) -> None:
    """Angles made of whole numbers stay float32 in half graphs, wherever they go."""
    nodes = [
        node("Shape", ["x"], ["n"], "count", start=1, end=2),
        node("Cast", ["n"], ["f"], "number", to=FLOAT),
        node("Mul", ["f", "f"], ["g"], "square"),
        node("Cast", ["g"], ["h"], "narrow", to=HALF),
        node("Cast", ["x"], ["a"], "in", to=HALF),
        node("Mul", ["a", "h"], ["z"], "scale"),
        CAST_BACK,
    ]
    stage = stage_of(half=Half())
    plan = build(stage, write_graph(tmp_path / "a.onnx", nodes))
    assert undeclared(stage, plan.layers) == []
    assert WIDTH == 4


def test_caches_get_the_size_that_an_engine_has_for_them(tmp_path: Path) -> None:
    """TensorRT takes no cache of a dynamic length, so the room in it is fixed before the graph is parsed; batch and columns stay open."""
    room = Axis("room", 16, 48, 1 << 16, fixed=True)
    columns = Axis("columns", 1, 1, 64)
    new = tuple(TensorSpec(name, "float16", (BATCH, 2, columns, 8)) for name in ("query", "new_key", "new_value"))
    start = TensorSpec("start", "int64", (BATCH,))
    caches = tuple(TensorSpec(name, "float16", (BATCH, 2, room, 8)) for name in ("key", "value"))
    y = TensorSpec("y", "float16", (BATCH, 2, columns, 8))
    stage = StageSpec("cached", "", (*new, start), (y,), Tolerance(1e-5), states=caches, half=None)
    updated = [replace(cache, name=updated_name(cache.name)) for cache in caches]
    kinds = {"float16": HALF, "int64": onnx.TensorProto.INT64}

    def value(tensor: TensorSpec) -> Any:
        return onnx.helper.make_tensor_value_info(
            tensor.name, kinds[tensor.dtype], [dim if isinstance(dim, int) else str(dim) for dim in tensor.dims]
        )

    nodes = [
        node("TensorScatter", ["key", "new_key", "start"], ["updated_key"], "keep_key", axis=2),
        node("TensorScatter", ["value", "new_value", "start"], ["updated_value"], "keep_value", axis=2),
        node("Attention", ["query", "updated_key", "updated_value"], ["y"], "attend"),
    ]
    graph = onnx.helper.make_graph(nodes, "cached", [*map(value, stage.feeds)], [*map(value, (y, *updated))])
    path = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10), path)
    (profile,) = stage_profiles(stage, LATENCY)
    assert profile.axes == {"batch": (1, 1, 2), "columns": (1, 1, 2), "room": (48, 48, 48)}
    plan = build(stage, path)
    assert {layer.node for layer in plan.layers if layer.type == "KV_CACHE_UPDATE"} == {"keep_key", "keep_value"}
    assert onnx.load(path).graph.input[4].type.tensor_type.shape.dim[2].dim_param == "room"  # the file stays as it was
