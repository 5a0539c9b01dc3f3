"""What rewriting the graphs of a calibration takes: who uses a value, what follows on it, and other nodes in the place of some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from musicrt.calibration.graphs import prune

Users = Mapping[str, Sequence[NodeProto]]
Constants = Mapping[str, NDArray[Any]]


def users_of(model: onnx.ModelProto) -> Users:
    """The nodes that take a value, by its name; none for those that nobody takes."""
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def constants_of(model: onnx.ModelProto) -> Constants:
    """Those that are in the graph itself, by name."""
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.data_location != TensorProto.EXTERNAL}


def follow(value: str, operators: Sequence[str], users: Users) -> list[NodeProto] | None:
    """The nodes behind a value, where each is all that takes the one before and is of these operators; None if it is otherwise."""
    chain: list[NodeProto] = []
    for operator in operators:
        found = users[value]
        if [node.op_type for node in found] != [operator]:
            return None
        chain += found
        (value,) = found[0].output
    return chain


def replace_nodes(model: onnx.ModelProto, made: Mapping[str, Sequence[NodeProto]]) -> None:
    """Put others in the place of the nodes that make these values, in place; and take out what no output needs then.

    What the graph says of the shapes of these values goes, since the new ones may be others.
    """
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += made.get(node.output[0], [NodeProto.FromString(node.SerializeToString())])  # apart from the list that is emptied
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stale = [index for index, value in enumerate(model.graph.value_info) if value.name in made]
    for index in reversed(stale):
        del model.graph.value_info[index]
    prune(model)
