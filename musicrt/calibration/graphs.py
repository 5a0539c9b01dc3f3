"""A stage's graph as calibration needs it: its layers, values inside of it, and its weights only where they are changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from musicrt.runtime.backends.onnx_session import OnnxSession
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.precision import ORT
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that may stand between a constant and the layer whose weight it is."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear with a constant weight. `name`: that of its module, or of its node where the graph does not tell."""

    name: str
    node: str
    operator: str
    given: str
    made: str

    def is_in(self, names: Iterable[str]) -> bool:
        """Whether it is one of these modules or nodes, or inside of one."""
        return any(self.name == name or self.node == name or self.name.startswith(f"{name}.") for name in names)


class StageGraph:
    """The graph of a stage, read without its weights. `stage`: as the graph has it (`StageSpec.in_flavour`)."""

    flavour: ClassVar[str] = ORT

    def __init__(self, stage: StageSpec, path: Path) -> None:
        self.stage, self.path = stage, path
        self.folder = path.parent
        self.model = self._load()
        self._constants = {one.name: one for one in self.model.graph.initializer}
        self._makers = {name: node for node in self.model.graph.node for name in node.output}
        self.layers = tuple(self._find_layers())

    def _load(self) -> onnx.ModelProto:
        return onnx.load(self.path, load_external_data=False)

    @classmethod
    def open(cls, bundle: Bundle, stage: str) -> Self:
        """Raises BundleError."""
        path, _ = bundle.graph(stage, cls.flavour)
        return cls(bundle.spec.stage(stage).in_flavour(cls.flavour), path)

    def _find_layers(self) -> Iterator[Layer]:
        """Those whose second operand, and no other, follows from a constant: attention's products of two activations are none."""
        taken: set[str] = set()
        for node in self.model.graph.node:
            if node.op_type not in LAYERS or self._origin(node.input[0]) or not (weight := self._origin(node.input[1])):
                continue
            module = weight.removesuffix(".half").removeprefix("stage.").rpartition(".")[0]
            name = module if module and module not in taken else node.name
            taken.add(name)
            yield Layer(name, node.name, node.op_type, node.input[0], node.output[0])

    def _origin(self, value: str) -> str | None:
        """The constant that a value is, but for its type and shape; None if it is computed."""
        while value not in self._constants:
            maker = self._makers.get(value)
            if maker is None or maker.op_type not in _MOVES or any(one not in self._constants for one in maker.input[1:]):
                return None
            value = maker.input[0]
        return value

    def constant(self, value: str) -> NDArray[np.generic]:
        """What a value is that follows from a constant. Raises BundleError."""
        if value in self._constants:
            tensor = self._constants[value]
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                return numpy_helper.to_array(tensor)
            place = {entry.key: entry.value for entry in tensor.external_data}
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            return read_array(self.folder / place["location"], int(place.get("offset", 0)), dtype, list(tensor.dims))
        node = self._makers[value]
        operands: dict[str, NDArray[np.generic]] = {str(name): self.constant(name) for name in node.input}
        graph = helper.make_graph([node], "constant", [], [onnx.ValueInfoProto(name=value)])
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in operands.items())
        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        results: Any = ReferenceEvaluator(model).run(None, {})
        return np.asarray(results[0])

    def with_weights(self, layers: Sequence[Layer]) -> onnx.ModelProto:
        """A copy that holds the weights and biases of some layers, each as a constant of its own in float32."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        nodes, wanted = {layer.node for layer in layers}, set[str]()
        for node in model.graph.node:
            if node.name not in nodes:
                continue
            for index, value in list(enumerate(node.input))[1:3]:
                if not self._origin(value):
                    continue  # a bias that is computed
                name = f"{value}.lowered"
                if name not in wanted:
                    model.graph.initializer.append(numpy_helper.from_array(self.constant(value), name))
                    wanted.add(name)
                node.input[index] = name
        return prune(model)

    def take(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A copy of feeds of the float32 graph as this one takes them."""
        return {tensor.name: np.array(feeds[tensor.name], tensor.dtype) for tensor in self.stage.feeds}

    def run(self, feeds: Mapping[str, Array], values: Sequence[str], threads: int | None = None) -> dict[str, Array]:
        """Values inside of the graph, or inputs and outputs, by name."""
        return self.probe(values, threads)(feeds)

    def probe(self, values: Sequence[str], threads: int | None = None) -> Probe:
        """Gives these values for any feeds."""
        return Probe(self, values, threads)


class Probe:
    """A session that gives values inside of a graph."""

    def __init__(self, graph: StageGraph, values: Sequence[str], threads: int | None) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        given = {one.name for one in model.graph.input}
        known = {one.name for one in model.graph.output}
        self._fed = [name for name in values if name in given]
        self._made = [name for name in values if name not in given]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._made if name not in known)
        self._types = {tensor.name: tensor.dtype for tensor in graph.stage.feeds}
        self._session = open_model(graph.stage, model, graph.folder, threads).session

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: feeds[name].astype(dtype, copy=False) for name, dtype in self._types.items()}
        found = dict(zip(self._made, self._session.run(self._made, given), strict=True)) if self._made else {}
        return {**found, **{name: feeds[name] for name in self._fed}}


def read_array(path: Path, offset: int, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[np.generic]:
    """An array that lies in a file of weights, from a byte on. Raises BundleError where the file ends before it.

    The libraries' own readers refuse files that have several names, as those of a copy with hard links have; what a graph of a bundle may
    refer to was checked when it was opened (`Bundle.graph`).
    """
    count = math.prod(shape)
    if offset + count * dtype.itemsize > path.stat().st_size:  # before room is made for it
        raise BundleError(f"{path} ends before a weight {list(shape)} at byte {offset}; copy the whole folder again")
    return np.fromfile(path, dtype.newbyteorder("<"), count, offset=offset).reshape(shape)


def open_model(stage: StageSpec, model: onnx.ModelProto, folder: Path, threads: int | None = None) -> OnnxSession:
    """A session of a graph that is in memory, whose other weights lie in `folder`. Raises BackendError."""
    return OnnxCpu(threads=threads).open_model(stage, model.SerializeToString(), folder)


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out, in place, what no output needs: nodes, constants, and what is said of them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting, needed, kept = [one.name for one in model.graph.output], set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if (node := makers.get(name)) is not None and id(node) not in kept:
            kept.add(id(node))
            waiting += [*node.input, *(inner for attribute in node.attribute for inner in _outer(attribute))]
    _drop(model.graph.node, [id(node) not in kept for node in model.graph.node])
    _drop(model.graph.initializer, [one.name not in needed for one in model.graph.initializer])
    _drop(model.graph.value_info, [one.name not in needed for one in model.graph.value_info])
    return model


def _drop(listed: Any, which: list[bool]) -> None:
    for index in reversed(range(len(which))):
        if which[index]:
            del listed[index]


def _outer(attribute: onnx.AttributeProto) -> Iterator[str]:
    """What the graphs of an attribute may take from outside."""
    for graph in (attribute.g, *attribute.graphs):
        for node in graph.node:
            yield from node.input
            for inner in node.attribute:
                yield from _outer(inner)
