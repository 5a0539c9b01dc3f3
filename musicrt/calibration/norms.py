"""Group norms in the form that integer kernels can have in their own order of memory: sums over whole channels, means by convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from musicrt.calibration.rewriting import Constants, constants_of, follow, replace_nodes, users_of

AVERAGE = "average."
"""What the names of the weights begin with that average over groups of channels."""
_PLANE, _FIRST = "plane_axes", "first_axis"
_SPREAD = ("Reshape", "ReduceMean", "Expand", "Reshape")
_CHAINS = {"ReduceMean": _SPREAD, "ReduceSumSquare": (*_SPREAD, "Div")}
"""What is behind a sum along rows: its mean over a group, for each channel; of squares, divided by the length of a row."""


def sum_planes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every group norm of images sum over frequency and time at once, in place; those of sequences stay as they are.

    Export sums along rows first, for the accuracy of float32 over minutes (`export.operators.group_norm`). In memory with channels last,
    as OpenVINO's integer convolutions want it, rows are not together: each norm would be brought into the other order and back, which
    takes about a sixth of what a profile of Music2Latent's decoder adds up to. For the same reason the means over groups of channels,
    which are given back to each channel, are 1x1 convolutions: their results are in that order, and so is then what the norm multiplies.
    """
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*model.graph.value_info, *model.graph.input)}
    constants, users = constants_of(model), users_of(model)
    made: dict[str, list[NodeProto]] = {}  # in the place of what makes these values
    weights: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        if node.op_type not in _CHAINS or not _is_over_rows(node, ranks, constants):
            continue
        chain = follow(node.output[0], _CHAINS[node.op_type], users)
        if chain is None or any(one.input[1] not in constants for one in (chain[0], chain[3])):
            continue
        groups, channels = (int(constants[one.input[1]][1]) for one in (chain[0], chain[3]))
        (result,) = chain[3].output
        divide = chain[4] if len(chain) > 4 else None
        if divide is not None and divide.input[0] != result:
            continue
        weight = f"{AVERAGE}{channels}.{groups}"
        weights[weight] = channels, groups
        made |= {node.output[0]: list(_sum(node)), result: [helper.make_node("Conv", [node.output[0], weight], [result], chain[3].name)]}
        if divide is not None:
            made[divide.output[0]] = [helper.make_node("Div", [result, f"{node.output[0]}.size"], divide.output, divide.name)]
    if made:
        replace_nodes(model, made)
        axes = {_PLANE: [-2, -1], _FIRST: [0]}
        model.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in axes.items())
        model.graph.initializer.extend(numpy_helper.from_array(_average(*sizes), name) for name, sizes in weights.items())
    return model


def _is_over_rows(node: NodeProto, ranks: Mapping[str, int], constants: Constants) -> bool:
    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    return axes is not None and axes.tolist() == [-1] and ranks.get(node.input[0]) == 4


def _sum(node: NodeProto) -> Iterator[NodeProto]:
    """What a reduction along rows gives, over planes; of squares with the `size` of a plane, which their sum is divided by."""
    given, (result,) = node.input[0], node.output
    if node.op_type == "ReduceMean":
        yield helper.make_node("ReduceMean", [given, _PLANE], [result], node.name, keepdims=1)
        return
    root, shape, count, size = (f"{result}.{what}" for what in ("root", "shape", "count", "size"))
    # Of a sum of squares OpenVINO would write down all squares first.
    yield helper.make_node("ReduceL2", [given, _PLANE], [root], root, keepdims=1)
    yield helper.make_node("Mul", [root, root], [result], node.name)
    yield helper.make_node("Shape", [given], [shape], shape, start=-2)
    yield helper.make_node("ReduceProd", [shape, _FIRST], [count], count, keepdims=1)
    yield helper.make_node("Cast", [count], [size], size, to=TensorProto.FLOAT)


def _average(channels: int, groups: int) -> NDArray[np.float32]:
    """The weight of a 1x1 convolution that gives every channel the mean of its group, float32 [channels, channels, 1, 1]."""
    width = channels // groups
    return np.asarray(np.kron(np.eye(groups), np.full((width, width), 1 / width)), np.float32)[..., None, None]
