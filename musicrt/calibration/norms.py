"""Group norms whose sums run over whole channels, which is what integer kernels can have in their own order of memory."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_PLANE, _FIRST = "plane_axes", "first_axis"


def sum_planes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every group norm of images sum over frequency and time at once, in place; those of sequences stay as they are.

    Export sums along rows first, for the accuracy of float32 over minutes (`export.operators.group_norm`). In memory with channels last,
    as OpenVINO's integer convolutions want it, rows are not together: each norm would be brought into the other order and back, which
    takes about a sixth of what a profile of Music2Latent's decoder adds up to.
    """
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*model.graph.value_info, *model.graph.input)}
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.data_location != TensorProto.EXTERNAL}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)

    def over_rows(node: NodeProto) -> bool:
        axes = constants.get(node.input[1]) if node.op_type in ("ReduceMean", "ReduceSumSquare") and len(node.input) > 1 else None
        follows = [user.op_type for user in users[node.output[0]]] == ["Reshape"]
        return axes is not None and axes.tolist() == [-1] and follows and ranks.get(node.input[0]) == 4

    nodes: list[NodeProto] = []
    sizes: dict[str, str] = {}  # of a plane, by the sum that is divided by it
    stale: set[str] = set()  # values that have other shapes now
    for node in model.graph.node:
        if node.op_type == "Div" and (size := sizes.get(_summed(node, nodes))):
            nodes.append(helper.make_node("Div", [node.input[0], size], node.output, node.name))
        elif not over_rows(node):
            nodes.append(node)
        elif node.op_type == "ReduceMean":
            stale |= {node.output[0], users[node.output[0]][0].output[0]}
            nodes.append(helper.make_node("ReduceMean", [node.input[0], _PLANE], node.output, node.name, keepdims=1))
        else:
            (result,) = node.output
            stale |= {result, users[result][0].output[0]}
            root, shape, count, size = (f"{result}.{what}" for what in ("root", "shape", "count", "size"))
            nodes += [  # of a sum of squares OpenVINO would write down all squares first
                helper.make_node("ReduceL2", [node.input[0], _PLANE], [root], f"{node.name}.root", keepdims=1),
                helper.make_node("Mul", [root, root], [result], node.name),
                helper.make_node("Shape", [node.input[0]], [shape], f"{node.name}.shape", start=-2),
                helper.make_node("ReduceProd", [shape, _FIRST], [count], f"{node.name}.count", keepdims=1),
                helper.make_node("Cast", [count], [size], f"{node.name}.size", to=TensorProto.FLOAT),
            ]
            sizes[result] = size
    if stale:
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # apart from the list that is emptied
        known = [value for value in model.graph.value_info if value.name not in stale]
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(kept)
        model.graph.value_info.extend(known)
        model.graph.initializer.append(numpy_helper.from_array(np.array([-2, -1], np.int64), _PLANE))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), _FIRST))
    return model


def _summed(divide: NodeProto, before: list[NodeProto]) -> str:
    """The sum over rows that a division by their length began with: mean over the group, spread over its channels again."""
    makers = {name: node for node in before[-16:] for name in node.output}
    value = str(divide.input[0])
    for operator in ("Reshape", "Expand", "ReduceMean", "Reshape"):
        node = makers.get(value)
        if node is None or node.op_type != operator:
            return ""
        value = str(node.input[0])
    return value
