"""Products whose left operand is the weight, as layers that have kernels in integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_FRAMES_FIRST, _FRAMES_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_AXES, _LAST = "pointwise_axes", "last_axis"

Users = Mapping[str, Sequence[NodeProto]]


def turn_projections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights [N, K] times x [B, t, K, f] layers with the weight on the right, in place; other products stay as they are.

    Such are those of Music2Latent's attention, whose channels come first, as serves float32 best. On the way in, x is an image whose
    frames were moved to the front: it is convolved as it was, by 1x1, and they are moved after that. On the way out, a bias is added and
    the frames are moved to the end: the channels are last in between. (As a convolution it would have one transposition less, but OpenVINO
    2026.4 fails where an image comes from any transposition but that of channels from the end.)
    """
    matrices = {one.name for one in model.graph.initializer if len(one.dims) == 2}
    matrices |= {node.output[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in matrices}  # stored as halves
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    images = {node.output[0]: node.input[0] for node in model.graph.node if _moves(node, _FRAMES_FIRST)}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    nodes: list[NodeProto] = []
    replaced: set[str] = set()  # values that a convolution on the way out has no use for
    found = False
    for node in model.graph.node:
        turned = node.op_type == "MatMul" and node.input[0] in matrices and ranks.get(node.input[1]) == 4
        if turned and node.input[1] in images:
            nodes += _enter(node, images[node.input[1]])
        elif turned and (rest := _find_exit(node, matrices, users)):
            nodes += _leave(node, *rest)
            replaced |= {rest[0].output[0], rest[1].output[0]}
        else:
            if node.output[0] not in replaced:
                nodes.append(NodeProto.FromString(node.SerializeToString()))
            continue
        found = True
    if found:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        for name, axes in ((_AXES, [2, 3]), (_LAST, [1])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
    return model


def _moves(node: NodeProto, order: list[int]) -> bool:
    """Whether it is a transposition to this order."""
    orders = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return node.op_type == "Transpose" and orders == [order]


def _enter(node: NodeProto, image: str) -> Iterator[NodeProto]:
    weight, made = f"{node.name}.weight", f"{node.name}.made"
    yield helper.make_node("Unsqueeze", [node.input[0], _AXES], [weight], weight)
    yield helper.make_node("Conv", [image, weight], [made], node.name)
    yield helper.make_node("Transpose", [made], node.output, made, perm=_FRAMES_FIRST)


def _find_exit(node: NodeProto, matrices: set[str], users: Users) -> tuple[NodeProto, NodeProto] | None:
    """The sum with a bias [N, 1] and the transposition behind a product, if that is all that becomes of it."""
    sums = users[node.output[0]]
    if [one.op_type for one in sums] != ["Add"] or not matrices & set(sums[0].input):
        return None
    moves = users[sums[0].output[0]]
    return (sums[0], moves[0]) if len(moves) == 1 and _moves(moves[0], _FRAMES_LAST) else None


def _leave(node: NodeProto, add: NodeProto, move: NodeProto) -> Iterator[NodeProto]:
    weight, bias, given, made, summed = (f"{node.name}.{what}" for what in ("weight", "bias", "given", "made", "summed"))
    (column,) = (name for name in add.input if name != node.output[0])
    yield helper.make_node("Transpose", [node.input[0]], [weight], weight, perm=[1, 0])
    yield helper.make_node("Squeeze", [column, _LAST], [bias], bias)
    yield helper.make_node("Transpose", [node.input[1]], [given], given, perm=[0, 1, 3, 2])
    yield helper.make_node("MatMul", [given, weight], [made], node.name)
    yield helper.make_node("Add", [made, bias], [summed], add.name)
    yield helper.make_node("Transpose", [summed], move.output, move.name, perm=[0, 3, 2, 1])
