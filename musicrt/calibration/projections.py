"""Products whose left operand is the weight, as 1x1 convolutions, which have kernels in integers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_LAST, _SECOND = (0, 2, 3, 1), (0, 3, 1, 2)
_AXES = "pointwise_axes"


def convolve_projections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weight [N, K] times x [B, t, K, f] a convolution of [B, K, f, t] between two transpositions, in place.

    Such is the attention of Music2Latent, whose channels come first, as serves float32 best. The transpositions meet those that are there
    already, and what loads the graph takes both out.
    """
    matrices = {one.name for one in model.graph.initializer if len(one.dims) == 2}
    matrices |= {node.output[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in matrices}  # stored as halves
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    nodes: list[NodeProto] = []
    found = False
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[0] not in matrices or ranks.get(node.input[1]) != 4:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
            continue
        found = True
        weight, given, made = (f"{node.name}.{what}" for what in ("weight", "given", "made"))
        nodes += [
            helper.make_node("Unsqueeze", [node.input[0], _AXES], [weight], weight),
            helper.make_node("Transpose", [node.input[1]], [given], given, perm=_LAST),
            helper.make_node("Conv", [given, weight], [made], node.name),
            helper.make_node("Transpose", [made], node.output, made, perm=_SECOND),
        ]
    if found:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), _AXES))
    return model
