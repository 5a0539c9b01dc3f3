"""How torch operators become ONNX where the exporter's own way does not do: too slow or too inexact in ONNX Runtime, or none at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import opset20
from onnxscript.values import Op, Opset

import musicrt.runtime.layers  # noqa: F401 - registers its operators
from musicrt.runtime.precision import ORT, TRT

op: Any = opset20  # its methods are typed for onnxscript's own values, which a translation does not see
static: Any = Opset("", 24)  # onnxscript has no module of it yet
_LONGEST_ROW = 8192


def _define(name: str, inputs: dict[str, str], outputs: tuple[str, ...], attributes: tuple[str, ...]) -> Any:
    """An operator of ONNX Runtime's own, as far as it is used here; onnxscript knows those of the standard only."""
    kinds = onnx.defs.OpSchema
    schema = kinds(
        name=name,
        domain="com.microsoft",
        since_version=1,
        inputs=[kinds.FormalParameter(one, kind) for one, kind in inputs.items()],
        outputs=[kinds.FormalParameter(one, "T") for one in outputs],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], ""), ("M", ["tensor(int32)"], "")],
        attributes=[kinds.Attribute(one, kinds.AttrType.INT, "") for one in attributes],
    )
    return Op(Opset("com.microsoft", 1), name, schema)


fused_attention = _define("MultiHeadAttention", dict.fromkeys(("query", "key", "value"), "T"), ("output",), ("num_heads",))
grouped_attention = _define(
    "GroupQueryAttention",
    dict.fromkeys(("query", "key", "value", "past_key", "past_value"), "T") | {"seqlens_k": "M", "total_sequence_length": "M"},
    ("output", "present_key", "present_value"),
    ("num_heads", "kv_num_heads"),
)


def group_norm(
    x: ir.Value, groups: int, weight: ir.Value | None = None, bias: ir.Value | None = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    """Group norm with its sums taken in two stages: along rows, then over the rest of the group.

    The exporter makes an InstanceNormalization of it, whose CPU kernel adds up a whole group in one float32 sum: at the
    millions of values in a group of a few seconds of audio that costs 4 decimal places, and it gets worse with the length.
    """
    del cudnn
    if x.shape is None or not isinstance(channels := x.shape[1], int):
        raise TypeError("group_norm needs the rank and the channels of its input")
    plane = list(x.shape[2:])
    rows = op.Reshape(x, [0, channels, math.prod(plane)]) if (joined := _is_short(plane)) else x
    per_channel = [0, channels, *[1] * (1 if joined else len(plane))]

    def over_group(sums: Any) -> Any:
        """Mean over a group of what was reduced along rows: [B, C, ..., 1] -> [B, C, 1, ...]."""
        mean = op.ReduceMean(op.Reshape(sums, [0, groups, -1]), [2], keepdims=1)
        return op.Reshape(op.Expand(mean, [1, 1, channels // groups]), per_channel)

    centred = op.Sub(rows, over_group(op.ReduceMean(rows, [-1], keepdims=1)))
    length = op.Cast(op.Shape(rows, start=-1), to=1)
    variance = op.Div(over_group(op.ReduceSumSquare(centred, [-1], keepdims=1)), length)
    factor = op.Reciprocal(op.Sqrt(op.Add(variance, eps)))
    if weight is not None:
        factor = op.Mul(factor, op.Reshape(weight, per_channel[1:]))
    y = op.Mul(centred, factor)
    y = y if bias is None else op.Add(y, op.Reshape(bias, per_channel[1:]))
    return op.Reshape(y, [0, channels, *plane]) if joined else y


def _is_short(plane: list[Any]) -> bool:
    """Whether a channel's values can be summed up as one row: of known size, and few enough for float32."""
    return len(plane) > 1 and all(isinstance(size, int) for size in plane) and math.prod(plane) <= _LONGEST_ROW


def attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention of [B, heads, n, d] by the fused operator, which keeps no matrix of scores.

    It wants heads side by side, [B, n, heads * d], as a projection gives them: ONNX Runtime removes the transpositions there and here.
    """
    if attn_mask is not None or dropout_p or is_causal or scale is not None or enable_gqa:
        raise NotImplementedError("only plain attention is exported")
    heads, width = _heads(query)
    y = fused_attention(*(_join_heads(x, heads * width) for x in (query, key, value)), num_heads=heads)
    return op.Transpose(op.Reshape(y, [0, 0, heads, width]), perm=[0, 2, 1, 3])


def cached_attention(projected: ir.Value, keys: ir.Value, values: ir.Value, last: ir.Value) -> tuple[Any, Any, Any]:
    """`musicrt.runtime.layers.attend_cached` by the operator that reads no more of a cache than is filled.

    Where the caches that come out are bound to those that go in, it writes the new positions only. The standard's TensorScatter and
    Attention (opset 24) do the second but not the first: on a CPU, each step costs as much as with a full cache.
    """
    if keys.shape is None or not isinstance(heads := keys.shape[1], int):
        raise TypeError("cached_attention needs the number of heads")
    total = op.Add(op.ReduceMax(last), op.Constant(value=ir.tensor(np.array(1, np.int32))))
    result, *caches = grouped_attention(projected, None, None, keys, values, last, total, num_heads=heads, kv_num_heads=heads)
    return result, caches[0], caches[1]


def scattered_attention(projected: ir.Value, keys: ir.Value, values: ir.Value, last: ir.Value) -> tuple[Any, Any, Any]:
    """The same by the standard's operators on caches of fixed size, which engines change in place.

    New keys and values are scattered into the caches; a mask leaves out what is not filled yet, and what comes behind each new position.
    """
    if keys.shape is None or not isinstance(heads := keys.shape[1], int) or not isinstance(width := keys.shape[3], int):
        raise TypeError("cached_attention needs the number and the width of the heads")
    heads_last = static.Reshape(projected, [0, 0, 3 * heads, width])
    query, key, value = static.Split(static.Transpose(heads_last, perm=[0, 2, 1, 3]), num_outputs=3, axis=1, _outputs=3)
    columns = static.Shape(projected, start=1, end=2)
    stop = static.Add(static.Cast(last, to=ir.DataType.INT64), static.Constant(value_ints=[1]))
    start = static.Sub(stop, columns)
    new_keys, new_values = (static.TensorScatter(cache, new, start, axis=2) for cache, new in ((keys, key), (values, value)))
    count = static.Squeeze(columns)
    ends = static.Add(static.Unsqueeze(start, [1]), static.Range(static.Constant(value_int=0), count, static.Constant(value_int=1)))
    places = static.Range(static.Constant(value_int=0), static.Squeeze(static.Shape(keys, start=2, end=3)), static.Constant(value_int=1))
    seen = static.LessOrEqual(places, static.Unsqueeze(ends, [1, 3]))  # [N, 1, S, capacity]
    y, *_ = static.Attention(query, new_keys, new_values, seen)
    joined = static.Reshape(static.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, heads * width])
    return joined, new_keys, new_values


def _heads(query: ir.Value) -> tuple[int, int]:
    """Number and width of the heads of [B, heads, n, width]."""
    if query.shape is None or not isinstance(heads := query.shape[1], int) or not isinstance(width := query.shape[3], int):
        raise TypeError("attention needs the number and the width of the heads")
    return heads, width


def _join_heads(x: Any, width: int) -> Any:
    return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, width])


def join_phases(phases: Sequence[ir.Value], rate: int) -> Any:
    """The phases of `musicrt.runtime.layers.PhaseUpsample`, laid side by side with all their channels.

    PyTorch's pixel shuffle has the phases of each channel together. Where channels are last in memory, as OpenVINO's convolutions have
    them, that takes a rearrangement before it and another one behind.
    """
    return op.DepthToSpace(op.Concat(*phases, axis=1), blocksize=rate, mode="DCR")


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


def lstm(
    x: ir.Value,
    input_weight: ir.Value,
    recurrent_weight: ir.Value,
    bias: ir.Value,
    initial_h: ir.Value | None = None,
    initial_c: ir.Value | None = None,
) -> tuple[Any, Any, Any]:
    """`musicrt.runtime.layers.Lstm`, whose weights lie as ONNX wants them: [B, T, I] -> [B, T, D * H], and the last states [D, B, H]."""
    if recurrent_weight.shape is None or not isinstance(hidden := recurrent_weight.shape[2], int):
        raise TypeError("lstm needs the shape of its weights")
    directions = recurrent_weight.shape[0]
    states, h, c = op.LSTM(
        op.Transpose(x, perm=[1, 0, 2]),
        input_weight,
        recurrent_weight,
        bias,
        None,
        initial_h,
        initial_c,
        direction="bidirectional" if directions == 2 else "forward",
        hidden_size=hidden,
    )
    return op.Reshape(op.Transpose(states, perm=[2, 0, 1, 3]), [0, 0, directions * hidden]), h, c  # of [T, D, B, H]


Table = Mapping[Callable[..., Any], Callable[..., Any]]

_ORT: Table = {
    torch.ops.aten.group_norm.default: group_norm,
    torch.ops.aten.linear.default: linear,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.musicrt.cached_attention.default: cached_attention,
    torch.ops.musicrt.join_phases.default: join_phases,
    torch.ops.musicrt.lstm.default: lstm,
}
_TRT: Table = {
    torch.ops.musicrt.cached_attention.default: scattered_attention,
    torch.ops.musicrt.join_phases.default: join_phases,
    torch.ops.musicrt.lstm.default: lstm,
}
OPERATORS: Mapping[str, Table] = {ORT: _ORT, TRT: _TRT}
"""Translations by flavour. TensorRT knows the operators of the standard only, and has kernels for those that stand for whole layers."""

OPSETS: Mapping[str, int] = {ORT: 20, TRT: 24}
"""By flavour. Of ONNX Runtime: below 21, where group norms are exported as instance norms, which its CPU kernels run twice as fast."""
