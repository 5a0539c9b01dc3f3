"""Which types the operators of a graph allow, by ONNX's own schemas, and whether the values have them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from musicrt.export.operators import OPSETS
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.precision import TRT

_LARGE = 1024  # bytes from which constants are left out where only their types matter
_MADE = {"Range", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike", "Bernoulli", "Multinomial"}
"""Operators whose output's type is not that of an input, or is an attribute's."""


@dataclass(frozen=True)
class Places:
    """Inputs and outputs of a node that may be float32 or float16. `obstacle`: why the node can't be in half precision."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    obstacle: str = ""


def float_places(node: ir.Node) -> Places:
    """What of a node changes its type in half precision; the rest stays as it is (the scales of a Resize, say)."""
    return _places(node.op_type, len(node.inputs), len(node.outputs))


@functools.cache
def _places(kind: str, inputs: int, outputs: int) -> Places:
    if kind in ("If", "Loop", "Scan"):
        return Places((), (), f"{kind} has a graph of its own")
    if kind in _MADE:
        return Places((), (), f"{kind} makes values of its own")
    schema = onnx.defs.get_schema(kind, OPSETS[TRT])
    both = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(constraint.allowed_type_strs)
    }
    given = tuple(index for index in range(inputs) if schema.inputs[min(index, len(schema.inputs) - 1)].type_str in both)
    made = tuple(index for index in range(outputs) if schema.outputs[min(index, len(schema.outputs) - 1)].type_str in both)
    if not given and not made:
        return Places((), (), f"{kind} of opset {OPSETS[TRT]} takes no float16")
    return Places(given, made)


def tensors_of(node: ir.Node) -> Iterator[ir.Value]:
    """What a node is given, and gives."""
    yield from (value for value in node.inputs if value is not None)
    yield from node.outputs


def check_standard(stage: str, model: ir.Model) -> None:
    """TensorRT knows the operators of the standard only. Raises ConfigError for others, by stage and node."""
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            raise ConfigError(
                f"stage {stage}: node {node.name} is a {node.op_type} of {node.domain}, which TensorRT does not know; "
                "translate its torch operator for the flavour trt in musicrt/export/operators.py"
            )


def infer_types(stage: str, model: ir.Model) -> None:
    """Fill in the types and ranks that the exporter left open. Raises ConfigError."""
    known = _infer(stage, model)
    for node in model.graph:
        for value in node.outputs:
            if value.name not in known:
                continue
            dtype, rank = known[value.name]
            value.dtype = value.dtype or dtype
            if value.shape is None and rank is not None:
                value.shape = ir.Shape([None] * rank)


def check_types(stage: str, model: ir.Model) -> None:
    """Hold a graph against ONNX's rules of types. Raises ConfigError by stage and node."""
    known = _infer(stage, model, strict=True)
    for node in model.graph:
        for value in node.outputs:
            found, _ = known.get(str(value.name), (None, None))
            if found != value.dtype:
                raise ConfigError(f"stage {stage}: node {node.name} gives {found}, expected {value.dtype}; report this")


def _infer(stage: str, model: ir.Model, *, strict: bool = False) -> dict[str, tuple[ir.DataType, int | None]]:
    """The type and, where it is known, the rank of every value, as ONNX infers them."""
    proto = ir.to_proto(_light(model))
    del proto.graph.value_info[:]  # what is claimed must not pass for what is so
    try:
        if strict:
            onnx.checker.check_model(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=strict)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ConfigError(f"stage {stage}: the types of the graph do not fit: {' '.join(str(error).split())[:300]}") from error
    tensors = {value.name: value.type.tensor_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    return {
        name: (ir.DataType(tensor.elem_type), len(tensor.shape.dim) if tensor.HasField("shape") else None)
        for name, tensor in tensors.items()
        if tensor.elem_type
    }


def _light(model: ir.Model) -> ir.Model:
    """A copy whose larger constants are inputs."""
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version)
    for value in list(copy.graph.initializers.values()):
        if value.const_value is not None and value.const_value.nbytes > _LARGE:
            value.shape = value.shape or ir.Shape(value.const_value.numpy().shape)
            value.dtype = value.const_value.dtype
            value.const_value = None
            del copy.graph.initializers[str(value.name)]
            copy.graph.inputs.append(value)
    return copy
