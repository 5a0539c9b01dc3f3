"""Weights of a bundle in half precision, computed with in single: what is stored is rounded, and every graph casts it back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn


def round_weights(modules: Iterable[nn.Module]) -> None:
    """Make every parameter a number that half precision has, in place."""
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.half().to(parameter.dtype)


def as_half(tensor: Tensor) -> Tensor:
    """The tensor in half precision if that loses nothing, else as it is."""
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def compact_constants(model: ir.Model, least: int) -> None:
    """Make constants of more than `least` bytes float16 where that loses nothing, with a cast to float32 behind each, in place."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.dtype != ir.DataType.FLOAT or value.const_value.nbytes <= least:
            continue
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored = ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(half, name=f"{name}.half"),
        )
        graph.initializers.add(stored)
        node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"cast_{name}")
        result = node.outputs[0]
        result.name, result.dtype, result.shape = f"{name}.float", ir.DataType.FLOAT, value.shape
        graph.insert_before(graph[0], node)
        value.replace_all_uses_with(result)
        del graph.initializers[name]
