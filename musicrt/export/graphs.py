"""From a torch module to an ONNX graph whose weights lie in the bundle's one safetensors file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.rewriter.pattern import MatchResult, SimplePatternMatcher
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from musicrt.export.half import to_half
from musicrt.export.operators import OPERATORS, OPSETS
from musicrt.export.types import check_standard
from musicrt.runtime.bundle import INLINE
from musicrt.runtime.files import tensor_places
from musicrt.runtime.precision import ORT, TRT
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec, updated_name


class _Flat(nn.Module):
    """Gives the exporter one argument, a list, however many inputs a stage has."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, inputs: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        result: Tensor | tuple[Tensor, ...] = self.stage(*inputs)
        return result


def trace_stage(stage: StageSpec, module: nn.Module, feeds: Mapping[str, Array], flavour: str = ORT) -> ir.Model:
    """Export a stage with every axis of its spec dynamic. `feeds`: inputs of no size 1, which would be taken for constant.

    Raises ConfigError if that flavour's operators can't have the stage's half precision.
    """
    model = trace_float(stage, module, feeds, flavour)
    if flavour == TRT and stage.half is not None:
        to_half(stage, stage.half, model)
    elif flavour == TRT:
        check_standard(stage.name, model)
    _name_axes(stage, model)
    _strip(model)
    return model


def trace_float(stage: StageSpec, module: nn.Module, feeds: Mapping[str, Array], flavour: str) -> ir.Model:
    """What the exporter gives, in float32, with its notes on where each node comes from."""
    inputs = [torch.from_numpy(feeds[tensor.name]) for tensor in stage.feeds]
    dynamic = [{i: torch.export.Dim.AUTO for i, dim in enumerate(tensor.dims) if not isinstance(dim, int)} for tensor in stage.feeds]
    with _quiet(), _quick_rewriting():
        program = torch.onnx.export(
            _Flat(module).eval(),
            (inputs,),
            dynamo=True,
            opset_version=OPSETS[flavour],
            dynamic_shapes=(dynamic,),
            input_names=[tensor.name for tensor in stage.feeds],
            output_names=[*(tensor.name for tensor in stage.outputs), *(updated_name(tensor.name) for tensor in stage.states)],
            custom_translation_table=dict(OPERATORS[flavour]),
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for stage {stage.name}")
    model: ir.Model = program.model
    return model


def write_weights(path: Path, tensors: Mapping[str, Tensor], models: Mapping[str, ir.Model], beside: Path | None = None) -> None:
    """Write one safetensors file with `tensors` and the larger constants of the graphs; make the graphs refer into it.

    A constant equal to a tensor is not stored again; neither is one of the file `beside` in the same folder, into which the graphs then
    refer too.
    """
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    by_content = {_content(tensor.numpy()): (path, name) for name, tensor in stored.items()}
    if beside is not None:
        by_content |= {_content(tensor.numpy()): (beside, name) for name, tensor in _read_tensors(beside)}
    places: list[tuple[ir.Value, tuple[Path, str]]] = []
    for stage, model in models.items():
        for value in model.graph.initializers.values():
            if value.const_value is None or value.const_value.nbytes <= INLINE:
                continue
            array = value.const_value.numpy()
            file, name = place = by_content.setdefault(_content(array), (path, f"graph.{stage}.{value.name}"))
            if file == path and name not in stored:
                stored[name] = torch.from_numpy(np.array(array, order="C"))
            places.append((value, place))
    save_file(stored, path)
    path.chmod(0o644)  # safetensors writes for the owner only
    offsets = {file: tensor_places(file) for file in ([path] if beside is None else [path, beside])}
    for value, (file, name) in places:
        tensor = value.const_value
        if tensor is None:
            continue
        start, stop = offsets[file][name]
        value.const_value = ir.ExternalTensor(
            file.name, start, stop - start, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=str(value.name), base_dir=file.parent
        )


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one after the other."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)


def _content(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


def _name_axes(stage: StageSpec, model: ir.Model) -> None:
    """Call the dynamic dimensions of inputs and outputs what the spec calls them."""
    for value, tensor in zip([*model.graph.inputs, *model.graph.outputs], [*stage.feeds, *stage.outputs, *stage.states], strict=True):
        value.shape = ir.Shape([dim if isinstance(dim, int) else str(dim) for dim in tensor.dims])


def _strip(model: ir.Model) -> None:
    """Drop what the exporter notes about its own run: source paths and traces."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    values: list[ir.Value] = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


@contextlib.contextmanager
def _quick_rewriting() -> Iterator[None]:
    """The exporter's rewriter tries each of its rules on each node. For those whose pattern ends in several nodes (there is one, about two
    slices) it lists the whole graph each time, before it looks whether the node is of the operator in question: of a graph with thousands
    of nodes, that is up to 40 % of the time that an export takes.
    """
    plain = SimplePatternMatcher.match

    def match(self: SimplePatternMatcher, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> MatchResult:
        ends = self.pattern.output_nodes
        if len(ends) > 1 and ends[0].op_identifier() not in (None, node.op_identifier()):
            return MatchResult().fail("another operator")
        return plain(self, model, graph, node, **options)

    with mock.patch.object(SimplePatternMatcher, "match", match):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on stdout and warns about packages that are not needed here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
