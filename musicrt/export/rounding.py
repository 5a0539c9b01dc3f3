"""A graph in half precision as ONNX Runtime has to be given it, so that a CPU rounds what a GPU would round.

Its CPU has float16 kernels for operators that move values, and for few others. Around the rest it puts casts to float32 and back, then
removes every pair of them: a graph in half precision runs in float32 from end to end, and neither overflows nor loses a digit.
"""

from __future__ import annotations

import onnx_ir as ir

from musicrt.export.half import LAYOUT

_BARRIER = 2
"""Operators in a row that move float16: a single one between casts is taken to float32 as well."""


def round_values(model: ir.Model) -> ir.Model:
    """A copy in which every value that an operator computes in float16 passes through what ONNX Runtime keeps in float16.

    Inside of an operator, sums stay float32, as those of matrix units do.
    """
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version)
    for node in list(copy.graph):
        if node.op_type in LAYOUT:
            continue
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT16 and (value.shape is None or len(value.shape)):  # a scalar can't be held
                _hold(copy.graph, node, value)
    return copy


def _hold(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    name, uses, given = value.name, list(value.uses()), [i for i, output in enumerate(graph.outputs) if output is value]
    value.name = f"{name}.computed"
    last = value
    for index in range(_BARRIER):
        barrier = ir.node("Concat", [last], {"axis": 0}, name=f"{name}.held{index}")
        graph.insert_after(node, barrier)
        node, last = barrier, barrier.outputs[0]
        last.name, last.type, last.shape = f"{name}.held{index}", value.type, value.shape
    last.name = name
    for user, index in uses:
        user.replace_input_with(index, last)
    for index in given:
        graph.outputs[index] = last
