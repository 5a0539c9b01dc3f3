"""Attention over keys and values of 8 bits: what is kept from step to step, and what a language model looks at in each.

Every channel of every head has a fixed scale, from the ranges of a calibration. ONNX Runtime's operator for caches reads them as they are,
in integers; float16 it would turn into float32 first, which takes longer than reading float32. It gives back what it is given,
changed or not, so what was an input of a float32 graph is a state of a lowered one (`StageSpec.in_flavour`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from musicrt.calibration.surgery import CONTRIB, Surgeon
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.spec import StageSpec, updated_name

Float = NDArray[np.float32]
_LARGEST = 127
_CHANNELS: Mapping[str, str | int] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def lower_caches(model: ir.Model, stage: StageSpec, ranges: Mapping[str, Float]) -> None:
    """Lower those attentions of a graph, in place, whose keys and values are inputs that `stage.int8.tensors` names.

    Raises ConfigError if one of these is used otherwise, or has no range.
    """
    named = set() if stage.int8 is None else set(stage.int8.tensors)
    inputs = {str(value.name): value for value in model.graph.inputs if value.name in named}
    surgeon, lengths, done = Surgeon(model, "attention."), dict[str, Any](), set[str]()
    scales = {name: surgeon.initialise(_scales(ranges, name, stage), f"{name}.scales") for name in inputs}
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention" and (pair := _names(node.inputs[3:5])) and inputs.keys() >= set(pair):
            _lower_cached(node, [scales[name] for name in pair], stage)
        elif node.op_type == "Softmax" and (look := _find_look(node)) and inputs.keys() >= set(pair := _names(look[2:])):
            _lower_look(surgeon, look, [scales[name] for name in pair], lengths)
        else:
            continue
        done |= set(pair)
    for name, value in inputs.items():
        if name not in done:
            raise ConfigError(f"stage {stage.name}: {name} is not used as keys or values of an attention that can be lowered")
        value.type = ir.TensorType(ir.DataType.INT8)
    _order_outputs(model, stage)


def lower_outputs(model: ir.Model, stage: StageSpec, ranges: Mapping[str, Float]) -> None:
    """Round those outputs [batch, heads, n, width] of a graph that `stage.int8.tensors` names, for the attention of another stage."""
    named = set() if stage.int8 is None else set(stage.int8.tensors)
    surgeon = Surgeon(model, "rounded.")
    limits = [surgeon.constant(limit, np.float32) for limit in (-_LARGEST, _LARGEST)]
    for index, value in enumerate(model.graph.outputs):
        if value.name not in named:
            continue
        name, factors = str(value.name), 1 / _scales(ranges, str(value.name), stage)
        value.name = f"{name}.float"
        rounded = surgeon.add("Round", surgeon.add("Mul", value, surgeon.initialise(factors, f"{name}.factors")))
        result = surgeon.add("Cast", surgeon.add("Clip", rounded, *limits), to=int(ir.DataType.INT8))
        result.name, result.shape, result.type = name, value.shape, ir.TensorType(ir.DataType.INT8)
        model.graph.outputs[index] = result


def _scales(ranges: Mapping[str, Float], name: str, stage: StageSpec) -> Float:
    """float32 [1, heads, 1, width]. Raises ConfigError."""
    source = stage.int8.tensors.get(name, name) if stage.int8 is not None else name
    if source not in ranges:
        raise ConfigError(f"stage {stage.name}: calibration saw no values of {source}")
    found = np.asarray(ranges[source], np.float32)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise ConfigError(f"stage {stage.name}: got ranges of {name} of shape {found.shape}, expected finite ones [heads, head width]")
    limits = np.maximum(found, np.float32(max(float(found.max()) * 1e-4, 1e-12)))
    return np.asarray(limits[None, :, None] / _LARGEST, np.float32)


def round_feeds(stage: StageSpec, feeds: Mapping[str, Any], ranges: Mapping[str, Float]) -> dict[str, Any]:
    """Feeds of the float32 graph as those of the lowered one."""
    made = dict(feeds)
    for name in feeds.keys() & (set() if stage.int8 is None else set(stage.int8.tensors)):
        rounded = np.rint(feeds[name] / _scales(ranges, name, stage))
        made[name] = np.clip(rounded, -_LARGEST, _LARGEST).astype(np.int8)
    return made


def _names(values: Any) -> list[str]:
    return [str(value.name) for value in values if value is not None]


def _lower_cached(node: ir.Node, scales: list[ir.Value], stage: StageSpec) -> None:
    """Attention over caches that it writes into: the same operator, with scales.

    Nothing lies behind the only new position: then all may be seen, and for that the operator has a way (ONNX Runtime 1.31) that takes
    half the time where there are several rows.
    """
    if stage.int8 is not None and stage.int8.single:
        node.attributes.add(ir.AttrInt64("causal", 0))
    node.resize_inputs(14)
    for index, scale in enumerate(scales, 12):
        node.replace_input_with(index, scale)
    for name, value in _CHANNELS.items():
        node.attributes.add(ir.AttrString(name, value) if isinstance(value, str) else ir.AttrInt64(name, int(value)))
    for output in node.outputs[1:]:
        output.type = ir.TensorType(ir.DataType.INT8)


def _find_look(softmax: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value, ir.Value] | None:
    """The last product of softmax(query @ transposed key) @ value, with query, key and value; None if it is anything else."""
    first = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    uses = list(softmax.outputs[0].uses())
    if first is None or first.op_type != "MatMul" or len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return None
    query, turned = first.inputs[:2]
    turn, value = (turned.producer() if turned is not None else None), uses[0].node.inputs[1]
    if query is None or value is None or turn is None or turn.op_type != "Transpose" or (key := turn.inputs[0]) is None:
        return None
    return (uses[0].node, query, key, value) if list(turn.attributes.get_ints("perm", [])) == [0, 1, 3, 2] else None


def _lower_look(
    surgeon: Surgeon, look: tuple[ir.Node, ir.Value, ir.Value, ir.Value], scales: list[ir.Value], lengths: dict[str, Any]
) -> None:
    """Attention over keys and values that stay. Its scale is in the queries; queries of keys that all rows share are one row."""
    last, query, key, value = look
    if key.shape is None or not isinstance(heads := key.shape[1], int) or not isinstance(width := key.shape[3], int):
        raise ConfigError(f"{key.name}: expected keys of known heads and width")
    surgeon.before(last)
    if str(key.shape) not in lengths:
        lengths[str(key.shape)] = _count(surgeon, key, heads * width)
    empty, places, total = lengths[str(key.shape)]
    rows = surgeon.add("Transpose", query, perm=[0, 2, 1, 3])
    shared = key.shape[0] == 1
    flat = surgeon.add("Reshape", rows, surgeon.constant([1, -1, heads * width] if shared else [0, 0, heads * width], np.int64))
    inputs = [flat, empty, empty, key, value, places, total, *[None] * 5, *scales]
    settings: dict[str, Any] = {**_CHANNELS, "num_heads": heads, "kv_num_heads": heads, "causal": 0, "scale": 1.0}
    seen, *kept = surgeon.add_node("GroupQueryAttention", inputs, CONTRIB, 3, settings)
    shape = surgeon.add("Shape", rows) if shared else surgeon.constant([0, 0, heads, width], np.int64)
    surgeon.replace(last, surgeon.add("Transpose", surgeon.add("Reshape", seen, shape), perm=[0, 2, 1, 3]))
    for given, output in zip((key, value), kept, strict=True):
        output.name, output.shape, output.type = updated_name(str(given.name)), given.shape, ir.TensorType(ir.DataType.INT8)
        surgeon.graph.outputs.append(output)


def _count(surgeon: Surgeon, key: ir.Value, width: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """For all attentions over keys of one shape: no new keys, the place of each row's last key, and how many there are."""
    batch = surgeon.add("Shape", key, start=0, end=1)
    size = surgeon.add("Concat", batch, surgeon.constant([0, width], np.int64), axis=0)
    total = surgeon.add("Cast", surgeon.add("Shape", key, start=2, end=3), to=int(ir.DataType.INT32))
    last = surgeon.add("Sub", total, surgeon.constant([1], np.int32))
    return surgeon.add("ConstantOfShape", size), surgeon.add("Expand", last, batch), total


def _order_outputs(model: ir.Model, stage: StageSpec) -> None:
    """Outputs in the order of the spec: its own, then states as they are after a call."""
    typed = stage.in_flavour("int8")
    order = [*(tensor.name for tensor in typed.outputs), *(updated_name(state.name) for state in typed.states)]
    by_name = {str(value.name): value for value in model.graph.outputs}
    model.graph.outputs[:] = [by_name[name] for name in order]
