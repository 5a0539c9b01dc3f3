"""Operators of ONNX that OpenVINO reads or computes in another way (2026.4), written in those that it does right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def convert_attention(node: Any) -> list[Any]:
    """GroupQueryAttention of com.microsoft, as `cached_attention` of `export/operators.py` makes it: all rows of a batch are equally long.

    node: with queries, keys and values side by side: [B, n, 3 * heads * d]; the caches of keys and values: [B, heads, room, d]; and as the
    seventh input how many of their entries count afterwards. Gives the output, [B, n, heads * d], and the caches with n new entries, which
    are changed in place where inputs and outputs are bound to the same memory. Raises ValueError for any other form of the operator.

    OpenVINO itself takes the batch's lengths for a single number, and puts new entries behind the room that there is.
    """
    from openvino import opset15 as op

    heads, kept = (node.get_attribute(name) for name in ("num_heads", "kv_num_heads"))
    if heads != kept or node.get_input_size() != 7 or node.get_input(1).get_node().get_type_name() != "NullNode":
        raise ValueError("expected a GroupQueryAttention of packed queries, keys and values, with as many heads of each, and nothing else")
    packed, total = node.get_input(0), node.get_input(6)

    def whole(*numbers: int) -> Any:
        return op.constant(np.array(numbers, np.int32))

    end = op.reshape(op.convert(total, "i32"), whole(1), special_zero=False)
    begin = op.subtract(end, op.gather(op.shape_of(packed, "i32"), whole(1), whole(0)))
    first, last = (op.squeeze(place, whole(0)) for place in (begin, end))
    zero, one, two = (op.constant(np.int32(number)) for number in range(3))
    places = op.range(first, last, one, "i32")
    seen = op.less_equal(op.unsqueeze(op.range(zero, last, one, "i32"), whole(0)), op.unsqueeze(places, whole(1)))  # [n, total]

    apart = op.transpose(op.reshape(packed, whole(0, 0, 3 * heads, -1), special_zero=True), whole(0, 2, 1, 3))
    query, *new = op.split(apart, one, 3).outputs()
    caches = [op.scatter_update(node.get_input(3 + index), places, one_new, two) for index, one_new in enumerate(new)]
    filled = [op.slice(cache, whole(0), end, whole(1), whole(2)) for cache in caches]
    attended = op.transpose(op.scaled_dot_product_attention(query, *filled, seen), whole(0, 2, 1, 3))
    joined = op.reshape(attended, whole(0, 0, -1), special_zero=True)
    return [joined.output(0), *(cache.output(0) for cache in caches)]


def convert_absolute(node: Any) -> list[Any]:
    """Abs. The CPU's kernel leaves negative whole numbers as they are."""
    from openvino import opset15 as op

    x = node.get_input(0)
    return [(op.absolute(x) if x.get_element_type().is_real() else op.maximum(x, op.negative(x))).output(0)]


CONVERSIONS: dict[tuple[str, str], Callable[[Any], list[Any]]] = {
    ("GroupQueryAttention", "com.microsoft"): convert_attention,
    ("Abs", ""): convert_absolute,
}
"""By name and domain of the operator."""
