"""Putting nodes and constants into a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"


class Surgeon:
    """Adds nodes before one that is there already. Names of constants are kept apart by a prefix."""

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self.model, self.graph, self._prefix = model, model.graph, prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._at: ir.Node | None = None
        self._count = 0

    def before(self, node: ir.Node) -> None:
        """From here on, what is added comes before this node."""
        self._at = node

    def constant(self, values: Any, dtype: type[np.generic], name: str = "") -> ir.Value:
        """A constant of the graph; small ones of equal content are one."""
        array = np.ascontiguousarray(values, dtype).reshape(np.shape(values))
        key = (str(array.dtype), array.shape, array.tobytes()) if array.size <= 16 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        value = self.initialise(array, name or self._name())
        if key is not None:
            self._constants[key] = value
        return value

    def initialise(self, array: np.ndarray[Any, Any], name: str) -> ir.Value:
        """A constant of that very name."""
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def add(self, kind: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> ir.Value:
        """Add a node and give its first output."""
        return self.add_node(kind, inputs, domain, outputs, attributes)[0]

    def add_node(
        self, kind: str, inputs: Sequence[ir.Value | None], domain: str, outputs: int, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        """Add a node and give all its outputs, which have names."""
        node = ir.node(kind, list(inputs), attributes, domain=domain, num_outputs=outputs)
        for value in node.outputs:
            value.name = self._name()
        if domain:
            self.model.graph.opset_imports.setdefault(domain, 1)
        if self._at is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._at, node)
        return node.outputs

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let `value` stand for the only output of a node, under its name, and take that node out."""
        (old,) = node.outputs
        value.name, value.shape, value.type, name = old.name, old.shape, old.type, old.name
        old.name = f"{name}.replaced"
        if old.is_graph_output():
            self.graph.outputs[:] = [value if one is old else one for one in self.graph.outputs]
        ir.convenience.replace_all_uses_with(old, value)
        self.graph.remove(node, safe=True)

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def drop_unused(model: ir.Model) -> None:
    """Take out the nodes and constants that nothing uses any more."""
    for node in reversed(list(model.graph)):
        if not any(list(value.uses()) or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del model.graph.initializers[name]
