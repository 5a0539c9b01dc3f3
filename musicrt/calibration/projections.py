"""Products whose left operand is the weight, as layers that can be in integers, and that leave channels together in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from musicrt.calibration.rewriting import follow, replace_nodes, users_of

LEAVING = "leaving."
"""What the names of weights on the way out begin with."""
_FRAMES_FIRST, _FRAMES_LAST, _CHANNELS_FIRST = [0, 3, 1, 2], [0, 2, 3, 1], [0, 3, 1, 2]
_ROWS_FIRST = [0, 4, 1, 2, 3]
_REST = ("Add", "Transpose")
"""What is behind a product on the way out."""
_AXES, _LAST = "pointwise_axes", "last_axis"


def turn_projections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights [N, K] times x [B, t, K, f] layers whose weight is on the right, in place; other products stay as they are.

    Such are those of Music2Latent's attention, whose channels come first, as serves float32 best. On the way in, x is an image whose
    frames were moved to the front: it is convolved as it was, by 1x1, and they are moved after that. On the way out, heads are joined to x,
    a bias is added, and the frames are moved to the end: the channels are last in between. (As a convolution it would be in integers, but
    OpenVINO 2026.4 fails where an image comes from some transpositions.)
    """
    shapes = {one.name: list(one.dims) for one in model.graph.initializer}
    shapes |= {node.output[0]: shapes[node.input[0]] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in shapes}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}  # those stored as halves too
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    makers, users = {name: node for node in model.graph.node for name in node.output}, users_of(model)
    made: dict[str, Sequence[NodeProto]] = {}
    widths: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[0] not in matrices or (given := makers.get(node.input[1])) is None:
            continue
        if _moves(given, _FRAMES_FIRST):
            made[node.output[0]] = list(_enter(node, given.input[0]))
        elif given.op_type == "Reshape" and ranks.get(given.input[0]) == 5 and (rest := follow(node.output[0], _REST, users)):
            add, move = rest
            bias = next((name for name in add.input if name in matrices), None)
            if bias is not None and _moves(move, _FRAMES_LAST):
                width = matrices[node.input[0]][1]
                widths[f"flat.{width}"] = width
                made[move.output[0]] = list(_leave(node, given.input[0], bias, f"flat.{width}", move))
    if made:
        replace_nodes(model, made)
        constants = {_AXES: [2, 3], _LAST: [1]} | {name: [0, 0, 0, width] for name, width in widths.items()}
        model.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items())
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


def _leave(node: NodeProto, heads: str, column: str, flat: str, move: NodeProto) -> Iterator[NodeProto]:
    """heads: [B, t, heads, K / heads, f]. column: the bias, [N, 1]. flat: the shape [B, f, t, K]. move: what gives [B, N, f, t]."""
    weight = f"{LEAVING}{node.name}"
    bias, moved, joined, made, summed = (f"{node.name}.{what}" for what in ("bias", "moved", "joined", "made", "summed"))
    yield helper.make_node("Transpose", [node.input[0]], [weight], weight, perm=[1, 0])
    yield helper.make_node("Squeeze", [column, _LAST], [bias], bias)
    yield helper.make_node("Transpose", [heads], [moved], moved, perm=_ROWS_FIRST)
    yield helper.make_node("Reshape", [moved, flat], [joined], joined)
    yield helper.make_node("MatMul", [joined, weight], [made], node.name)
    yield helper.make_node("Add", [made, bias], [summed], summed)
    yield helper.make_node("Transpose", [summed], move.output, move.name, perm=_CHANNELS_FIRST)
