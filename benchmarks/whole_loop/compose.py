"""Putting a stage into the body of a `Loop`, with the arithmetic of a sampler around it.

The weights stay where they are: the composed model refers into the bundle's file, as the stage's own graph does. It is opened from memory,
and told of the folder of that file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from musicrt.runtime.backends.onnxruntime import SLEEPING, OnnxCpu, make_options

Array = NDArray[Any]
Placing = Literal["outside", "inside"]
"""Where the weights are declared: in the main graph, or in the loop's body."""
INDEX = "loop_index"
"""In the body: the number of the step, int64 []."""


class Nodes:
    """Nodes that are being written; what they give is named after `scope`, and the constants that they need are collected."""

    def __init__(self, scope: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._scope = scope

    def add(self, operator: str, *inputs: str, name: str | None = None, more: int = 0, **attributes: Any) -> str:
        """Write a node; the name of its first output, which `name` can choose. more: outputs that nobody reads."""
        output = name or f"{self._scope}_{len(self.nodes)}"
        outputs = [output, *(f"{output}_{number}" for number in range(more))]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return output

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """A constant of the main graph, which bodies see."""
        name = f"{self._scope}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def row(self, table: Array, name: str | None = None) -> str:
        """The entry of a table [steps, ...] in the step that runs, in the dtype of the table."""
        return self.add("Gather", self.constant(table, table.dtype.type), INDEX, name=name, axis=0)


@dataclass(frozen=True)
class Carried:
    """What a step hands to the next one. inner: its name in the body. initial: the name in the main graph of what the first step gets.
    following: the name in the body of what the next step gets. after: the name of what the last step leaves, in the main graph."""

    inner: str
    initial: str
    following: str
    after: str


@dataclass(frozen=True)
class Sampler:
    """All around the network. begin, end: nodes of the main graph before and after the loop. before, behind: nodes of the body before and
    after the network. scanned: by names in the body, the names in the main graph of the values of all steps, [steps, ...].
    """

    steps: int
    begin: Nodes
    before: Nodes
    behind: Nodes
    end: Nodes
    carried: Sequence[Carried]
    scanned: Mapping[str, str] = field(default_factory=dict)


def compose(
    stage: onnx.ModelProto, sampler: Sampler, feeds: Mapping[str, Array], results: Mapping[str, type[np.generic]], placing: Placing
) -> onnx.ModelProto:
    """One model of `sampler.steps` runs of a stage, for the shapes of `feeds`, which it is given. results: what it gives, by name."""
    network, weights = stage.graph, list(stage.graph.initializer)
    parts = (sampler.begin, sampler.before, sampler.behind, sampler.end)
    going, still = "loop_going", "loop_still_going"
    left = [*(one.following for one in sampler.carried), *sampler.scanned]
    body = helper.make_graph(
        [*sampler.before.nodes, *network.node, *sampler.behind.nodes, helper.make_node("Identity", [going], [still])],
        "step",
        [_scalar(INDEX, TensorProto.INT64), _scalar(going, TensorProto.BOOL), *(_untyped(one.inner) for one in sampler.carried)],
        [_scalar(still, TensorProto.BOOL), *(_untyped(name) for name in left)],
        initializer=weights if placing == "inside" else [],
    )
    trips, start = sampler.begin.constant(sampler.steps, np.int64), sampler.begin.constant(True, np.bool_)
    loop = helper.make_node(
        "Loop",
        [trips, start, *(one.initial for one in sampler.carried)],
        [*(one.after for one in sampler.carried), *sampler.scanned.values()],
        body=body,
    )
    graph = helper.make_graph(
        [*sampler.begin.nodes, loop, *sampler.end.nodes],
        "sampler",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in feeds.items()],
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None) for name, kind in results.items()],
        initializer=[*(constant for part in parts for constant in part.constants), *(weights if placing == "outside" else [])],
    )
    return helper.make_model(graph, opset_imports=stage.opset_import, functions=stage.functions, ir_version=stage.ir_version)


def open_model(model: bytes, folder: Path, threads: int | None) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A call (feeds) -> results of a composed model whose weights lie in `folder`; with the options of OnnxCpu."""
    options = make_options(threads, {**SLEEPING, "session.model_external_initializers_file_folder_path": str(folder)})
    session = ort.InferenceSession(model, options, providers=[OnnxCpu.provider])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _scalar(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def _untyped(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)
