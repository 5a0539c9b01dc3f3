"""Graphs in the form that has kernels in integers: the same numbers, by other operators."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from musicrt.calibration.graphs import open_model
from musicrt.calibration.norms import AVERAGE, sum_planes
from musicrt.calibration.projections import turn_projections
from musicrt.calibration.static import IntegerGraph
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.precision import ORT
from musicrt.runtime.verify import probe_inputs, relative_error


def _load(name: str) -> onnx.ModelProto:
    path, _ = Bundle.open(EMBEDDED).graph(name, ORT)
    return onnx.load(path, load_external_data=False)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", ["encoder", "denoiser", "decoder"])
def test_the_form_for_integers_gives_the_same_numbers(name: str) -> None:
    graph = IntegerGraph.open(Bundle.open(EMBEDDED), name)
    feeds = probe_inputs(graph.stage, {"batch": 2, "latents": 3}, 1)
    with open_model(graph.stage, _load(name), graph.folder) as plain, open_model(graph.stage, graph.model, graph.folder) as changed:
        assert relative_error(changed.run(feeds), plain.run(feeds)) < 1e-5


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_norms_of_images_sum_over_planes(name: str) -> None:
    """Those of sequences have three axes, and rows that are whole channels already."""
    model = _load(name)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    rows = {node.name for node in model.graph.node if node.op_type == "ReduceSumSquare" and ranks.get(node.input[0]) == 3}
    before = _operators(model)
    changed = sum_planes(model)
    assert {node.name for node in changed.graph.node if node.op_type == "ReduceSumSquare"} == rows
    assert _operators(changed)["ReduceL2"] == before["ReduceSumSquare"] - len(rows) > 5
    assert rows
    averages = [node for node in changed.graph.node if node.op_type == "Conv" and node.input[1].startswith(AVERAGE)]
    assert len(averages) == 2 * _operators(changed)["ReduceL2"], "of values, and of squares"
    assert _operators(changed)["Expand"] == before["Expand"] - len(averages)
    layers = {layer.node for layer in IntegerGraph.open(Bundle.open(EMBEDDED), name).layers}
    assert layers.isdisjoint(node.name for node in averages)


def test_norm_that_divides_by_its_squares_is_left_alone() -> None:
    """It looks like one, and is none: with sums over planes it would give other numbers."""
    changed = sum_planes(_load("decoder"))
    name = next(node.name for node in changed.graph.node if node.op_type == "Div" and node.input[1].endswith(".size"))
    model = _load("decoder")
    divide = next(node for node in model.graph.node if node.name == name)
    divide.input[:] = list(reversed(divide.input))
    assert _operators(sum_planes(model))["ReduceSumSquare"] == _operators(changed)["ReduceSumSquare"] + 1


def test_weights_of_attention_are_on_the_right() -> None:
    model = _load("decoder")
    before = _operators(model)
    after = _operators(turn_projections(model))
    attentions = before["MatMul"] // 6
    assert attentions > 0
    assert after["Conv"] - before["Conv"] == 3 * attentions, "query, key and value are convolutions of images"
    assert after["MatMul"] == 3 * attentions, "scores, their sum, and what comes of it"
    assert after["Transpose"] - before["Transpose"] == 4 * attentions, "three ways in for one; on the way out one more, and the weight's"
    assert {layer.operator for layer in IntegerGraph.open(Bundle.open(EMBEDDED), "decoder").layers} == {"Conv"}


def test_other_graphs_stay_as_they_are() -> None:
    add = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 3, 4]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([add], "plain", [x], [y]))
    before = model.SerializeToString()
    assert turn_projections(sum_planes(model)).SerializeToString() == before
