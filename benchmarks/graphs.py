"""Graphs of networks that no bundle has, exported like the stages of one: what a suite compares a bundle's own graphs with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from musicrt.runtime.backends.onnx_session import OnnxSession
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.verify import probe_inputs, probe_sizes

if TYPE_CHECKING:
    from torch import nn


def export_like_stage(stage: StageSpec, network: nn.Module, folder: Path) -> Path:
    """Export a network that takes and gives what a stage does; its graph and weights are in `folder` then. Returns the graph's path."""
    import onnx_ir as ir

    from musicrt.export.graphs import trace_stage, write_weights

    model, path = trace_stage(stage, network, probe_inputs(stage, probe_sizes(stage, 2), 1)), folder / f"{stage.name}.onnx"
    write_weights(folder / "weights.safetensors", dict(network.named_parameters()), {stage.name: model})
    ir.save(model, path)
    return path


def open_like_stage(stage: StageSpec, path: Path, threads: int | None) -> OnnxSession:
    """A session of such a graph, opened as a bundle's own ones are. Raises BackendError."""
    return OnnxCpu(threads=threads).open_graph(stage, path)
