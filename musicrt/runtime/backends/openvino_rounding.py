"""Results of layers in graphs of 8-bit integers, which OpenVINO need not round."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov

_LAYERS = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"})
_PAIR = ("Convert", "Convert", "Subtract", "Multiply")
"""What QuantizeLinear and DequantizeLinear are read as, behind a FakeQuantize."""


def keep_results(model: ov.Model) -> None:
    """Take out the rounding to integers, in place, of what no layer takes.

    A graph has it behind every layer, because ONNX Runtime's integer kernels give integers. OpenVINO's give what the rest is computed in,
    and it would round that, and carry scales and zero points past whatever follows. Only what goes into layers is rounded then.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or (last := _follow(node)) is None:
            continue
        if not any(target.get_node().get_type_name() in _LAYERS for target in last.output(0).get_target_inputs()):
            last.output(0).replace(node.input_value(0))


def _follow(node: ov.Node) -> ov.Node | None:
    """The end of the pair that begins at a node; None if anything else takes a part of it."""
    for operator in _PAIR:
        targets = list(node.output(0).get_target_inputs())
        if len(targets) != 1 or (node := targets[0].get_node()).get_type_name() != operator:
            return None
    return node
