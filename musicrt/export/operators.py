"""How torch operators become ONNX where the exporter's own way is too slow or too inexact in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20

import musicrt.runtime.layers  # noqa: F401 - registers its operators

op: Any = opset20  # its methods are typed for onnxscript's own values, which a translation does not see


def group_norm(
    x: ir.Value, groups: int, weight: ir.Value | None = None, bias: ir.Value | None = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    """Group norm with its sums taken in two stages: along the last axis, then over the rest of the group.

    The exporter makes an InstanceNormalization of it, whose CPU kernel adds up a whole group in one float32 sum: at the
    millions of values in a group of a few seconds of audio that costs 4 decimal places, and it gets worse with the length.
    """
    del cudnn
    if x.shape is None or not isinstance(channels := x.shape[1], int):
        raise TypeError("group_norm needs the rank and the channels of its input")
    per_channel = [0, channels, *[1] * (len(x.shape) - 2)]

    def over_group(rows: Any) -> Any:
        """Mean over a group of what was reduced along the last axis: [B, C, ..., 1] -> [B, C, 1, ...]."""
        mean = op.ReduceMean(op.Reshape(rows, [0, groups, -1]), [2], keepdims=1)
        return op.Reshape(op.Expand(mean, [1, 1, channels // groups]), per_channel)

    centred = op.Sub(x, over_group(op.ReduceMean(x, [-1], keepdims=1)))
    length = op.Cast(op.Shape(x, start=-1), to=1)
    variance = over_group(op.Div(op.ReduceSumSquare(centred, [-1], keepdims=1), length))
    factor = op.Reciprocal(op.Sqrt(op.Add(variance, eps)))
    if weight is not None:
        factor = op.Mul(factor, op.Reshape(weight, per_channel[1:]))
    y = op.Mul(centred, factor)
    return y if bias is None else op.Add(y, op.Reshape(bias, per_channel[1:]))


def linear(x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> Any:
    """A Gemm over all rows, which takes the weight as torch has it.

    The exporter makes a MatMul of it and a transposed weight: a second copy, in the bundle or in ONNX Runtime's memory.
    """
    if x.shape is None or weight.shape is None or len(x.shape) < 2:
        raise TypeError("linear needs the rank of its input")
    inputs = [weight] if bias is None else [weight, bias]
    if len(x.shape) == 2:
        return op.Gemm(x, *inputs, transB=1)
    rows = op.Gemm(op.Reshape(x, [-1, weight.shape[1]]), *inputs, transB=1)
    return op.Reshape(rows, op.Concat(op.Shape(x, end=-1), op.Constant(value_ints=[weight.shape[0]]), axis=0))


def lstm(x: ir.Value, input_weight: ir.Value, recurrent_weight: ir.Value, bias: ir.Value) -> Any:
    """`musicrt.runtime.layers.Lstm`, whose weights lie as ONNX wants them: [B, T, I] -> [B, T, 2H]."""
    if recurrent_weight.shape is None or not isinstance(hidden := recurrent_weight.shape[2], int):
        raise TypeError("lstm needs the shape of its weights")
    steps_first = op.Transpose(x, perm=[1, 0, 2])
    states, _, _ = op.LSTM(steps_first, input_weight, recurrent_weight, bias, direction="bidirectional", hidden_size=hidden)
    return op.Reshape(op.Transpose(states, perm=[2, 0, 1, 3]), [0, 0, 2 * hidden])  # of [T, 2, B, H]


ORT_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.group_norm.default: group_norm,
    torch.ops.aten.linear.default: linear,
    torch.ops.musicrt.lstm.default: lstm,
}
"""Translations for the `ort` flavour."""
