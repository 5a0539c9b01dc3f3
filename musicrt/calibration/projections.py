"""Products whose left operand is the weight, as layers that have kernels in integers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_FRAMES_FIRST, _SWAPPED = [0, 3, 1, 2], [0, 1, 3, 2]
_AXES = "pointwise_axes"


def turn_projections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every weight [N, K] times x [B, t, K, f] a layer with the weight on the right, in place.

    Such are those of Music2Latent's attention, whose channels come first, as serves float32 best. Where x is an image whose frames were
    moved to the front, the layer becomes a 1x1 convolution of that image; else the last axes change places before and after.
    """
    matrices = {one.name for one in model.graph.initializer if len(one.dims) == 2}
    matrices |= {node.output[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in matrices}  # stored as halves
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    images = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose" and _order(node) == _FRAMES_FIRST}
    nodes: list[NodeProto] = []
    found = False
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] in matrices and ranks.get(node.input[1]) == 4:
            found = True
            nodes += _convolve(node, images[node.input[1]]) if node.input[1] in images else _swap(node)
        else:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
    if found:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), _AXES))
    return model


def _order(node: NodeProto) -> list[int]:
    return [int(axis) for attribute in node.attribute if attribute.name == "perm" for axis in attribute.ints]


def _convolve(node: NodeProto, image: str) -> Iterator[NodeProto]:
    weight, made = f"{node.name}.weight", f"{node.name}.made"
    yield helper.make_node("Unsqueeze", [node.input[0], _AXES], [weight], weight)
    yield helper.make_node("Conv", [image, weight], [made], node.name)
    yield helper.make_node("Transpose", [made], node.output, made, perm=_FRAMES_FIRST)


def _swap(node: NodeProto) -> Iterator[NodeProto]:
    weight, given, made = (f"{node.name}.{what}" for what in ("weight", "given", "made"))
    yield helper.make_node("Transpose", [node.input[0]], [weight], weight, perm=[1, 0])
    yield helper.make_node("Transpose", [node.input[1]], [given], given, perm=_SWAPPED)
    yield helper.make_node("MatMul", [given, weight], [made], node.name)
    yield helper.make_node("Transpose", [made], node.output, made, perm=_SWAPPED)
