"""Group norms summed over whole channels: the same numbers, and no sum along rows of images is left."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from musicrt.calibration.graphs import StageGraph, open_model
from musicrt.calibration.planes import sum_planes
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.verify import probe_inputs, relative_error


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_norms_give_the_same_numbers(name: str) -> None:
    graph = StageGraph.open(Bundle.open(EMBEDDED), name)
    feeds = probe_inputs(graph.stage, {"batch": 2, "latents": 3}, 1)
    names = [tensor.name for tensor in graph.stage.outputs]
    before, expected = _operators(graph.model), graph.run(feeds, names)
    changed = sum_planes(graph.model)
    with open_model(graph.stage, changed, graph.folder) as session:
        assert relative_error(session.run(feeds), expected) < 1e-5
    after = _operators(changed)
    assert after["ReduceL2"] == before["ReduceSumSquare"] - after["ReduceSumSquare"] > 5
    assert sum_planes(changed) == changed, "a second time there is nothing left to do"


def test_sequences_keep_their_rows() -> None:
    """What `export.operators.group_norm` writes for [B, C, T] has three axes, and rows that are whole channels already."""
    graph = StageGraph.open(Bundle.open(EMBEDDED), "encoder")
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.model.graph.value_info}
    rows = [node for node in graph.model.graph.node if node.op_type == "ReduceSumSquare" and ranks.get(node.input[0]) == 3]
    left = {node.name for node in sum_planes(graph.model).graph.node if node.op_type == "ReduceSumSquare"}
    assert rows
    assert {node.name for node in rows} == left


def test_other_graphs_stay_as_they_are() -> None:
    add = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 3, 4]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([add], "plain", [x], [y]))
    before = model.SerializeToString()
    assert sum_planes(model).SerializeToString() == before
