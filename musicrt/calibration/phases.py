"""Upsampling by phases in the form that keeps channels together in memory."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import NodeProto, helper

from musicrt.calibration.rewriting import follow, replace_nodes, users_of


def join_phases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Lay the phases of an upsampling (`runtime.layers`) one behind the other, each with all its channels, in place.

    Export lays the phases of each channel together, as PyTorch's pixel shuffle has them. With channels last in memory, as OpenVINO's
    integer convolutions have them, that takes a rearrangement before DepthToSpace and another one behind it.
    """
    makers, users = {name: node for node in model.graph.node for name in node.output}, users_of(model)
    made: dict[str, Sequence[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "Concat" or _attribute(node, "axis") != 2:
            continue
        apart = [makers.get(name) for name in node.input]
        chain = follow(node.output[0], ("Reshape", "DepthToSpace"), users)
        if chain is None or any(one is None or one.op_type != "Unsqueeze" for one in apart) or _attribute(chain[1], "mode") != b"CRD":
            continue
        shuffle, joined = chain[1], f"{node.output[0]}.joined"
        made[shuffle.output[0]] = [
            helper.make_node("Concat", [one.input[0] for one in apart if one is not None], [joined], joined, axis=1),
            helper.make_node(
                "DepthToSpace", [joined], shuffle.output, shuffle.name, mode="DCR", blocksize=_attribute(shuffle, "blocksize")
            ),
        ]
    if made:
        replace_nodes(model, made)
    return model


def _attribute(node: NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)
