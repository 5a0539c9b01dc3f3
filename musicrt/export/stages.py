"""Writing the graphs of one flavour into a bundle's folder: trace, store weights once, hold against torch, describe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from musicrt.export.compact import as_half, compact_constants
from musicrt.export.graphs import trace_stage, write_weights
from musicrt.export.operators import OPSETS
from musicrt.export.rounding import round_values
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.backends.torch import TorchSession
from musicrt.runtime.bundle import INLINE, STAGES, WEIGHTS
from musicrt.runtime.errors import VerificationError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.manifest import FileEntry, GraphEntry, Probe
from musicrt.runtime.precision import ORT, TRT
from musicrt.runtime.session import Array
from musicrt.runtime.spec import ModelSpec, StageSpec
from musicrt.runtime.verify import probe_inputs, probe_sizes, record_probe, relative_error

SEED = 20240808
_FILES: Mapping[str, tuple[str, str]] = {ORT: (".onnx", WEIGHTS), TRT: (".trt.onnx", "weights.half.safetensors")}
"""By flavour: how the names of its graphs end, and its weights."""

OnStage = Callable[[str, int, int], None]


def write_flavour(
    folder: Path,
    spec: ModelSpec,
    modules: Mapping[str, nn.Module],
    flavour: str,
    on_stage: OnStage | None = None,
    *,
    half_weights: bool = False,
) -> tuple[FileEntry, dict[str, GraphEntry], dict[str, Probe]]:
    """Write the graphs of all stages and their weights: the entries of both, and a recorded run of each stage.

    `modules` are the stages' torch modules; the weights of the flavour `ort` are theirs, and have to be there for any other.
    half_weights: of the flavour `ort`, store those in half precision that lose nothing by it. Raises ConfigError, VerificationError.
    """
    suffix, weights = _FILES[flavour]
    models: dict[str, ir.Model] = {}
    for done, stage in enumerate(spec.stages):
        if on_stage:
            on_stage(stage.name, done, len(spec.stages))
        models[stage.name] = trace_stage(stage, modules[stage.name], probe_inputs(stage, probe_sizes(stage, 2), SEED), flavour)
    path = folder / STAGES / weights
    if flavour == ORT:
        weights_of = dict(nn.ModuleDict(dict(modules)).named_parameters())
        if half_weights:
            for model in models.values():
                compact_constants(model, INLINE)
        write_weights(path, {name: as_half(tensor) if half_weights else tensor for name, tensor in weights_of.items()}, models)
    else:
        write_weights(path, {}, models, beside=folder / STAGES / WEIGHTS)
    graphs, probes = dict[str, GraphEntry](), dict[str, Probe]()
    for stage in spec.stages:
        place = folder / STAGES / f"{stage.name}{suffix}"
        graphs[stage.name], probes[stage.name] = _write_stage(folder, place, stage, modules[stage.name], models[stage.name], flavour)
    return file_entry(folder, path), graphs, probes


def _write_stage(folder: Path, path: Path, stage: StageSpec, module: nn.Module, model: ir.Model, flavour: str) -> tuple[GraphEntry, Probe]:
    """Save a graph, hold it against torch at two sets of sizes, and keep one of the runs. Raises VerificationError."""
    ir.save(model, path)
    typed, tolerance = stage.in_flavour(flavour), stage.tolerance_of(flavour)
    half = flavour == TRT and stage.half is not None
    errors: list[float] = []
    with (
        _measured(path, model, half) as runnable,
        OnnxCpu().open_graph(typed, runnable) as exported,
        TorchSession(stage, module) as reference,
    ):
        for sizes in (probe_sizes(stage, 3), probe_sizes(stage, 1)):
            feeds = probe_inputs(stage, sizes, SEED)
            own = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in typed.feeds}
            expected = reference.run(feeds)
            errors.append(relative_error(exported.run(own) | _states(typed, own), expected | _states(stage, feeds)))
    error = float(np.max(errors))  # unlike max(), NaN if one is
    if not error <= tolerance:
        raise VerificationError(
            f"stage {stage.name}: the {flavour} graph is {error:.1e} from torch, allowed {tolerance:.0e}; nothing was written"
        )
    entry = GraphEntry(
        file=file_entry(folder, path),
        opset=OPSETS[flavour],
        precision="float16" if half else "float32",
        error=error,
        tolerance=tolerance,
    )
    return entry, record_probe(sizes, SEED, expected)


def _states(stage: StageSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {state.name: feeds[state.name] for state in stage.states}


@contextlib.contextmanager
def _measured(path: Path, model: ir.Model, half: bool) -> Iterator[Path]:
    """The graph as it is measured: one in half precision with every rounding made explicit, in a file that is removed again."""
    if not half:
        yield path
        return
    rounded = path.with_name(f".{path.name}")
    try:
        ir.save(round_values(model), rounded)
        yield rounded
    finally:
        rounded.unlink(missing_ok=True)


def file_entry(folder: Path, path: Path) -> FileEntry:
    """What the manifest says of a file."""
    return FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
