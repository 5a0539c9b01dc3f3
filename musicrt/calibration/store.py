"""Writing lowered graphs into a bundle: what changed goes into a file of its own, everything else stays where it is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save_file

from musicrt.calibration.graphs import open_model
from musicrt.runtime.bundle import INLINE, MANIFEST, STAGES, Bundle, manifest_text, write_manifest
from musicrt.runtime.files import new_file, sha256_of, tensor_places
from musicrt.runtime.manifest import CalibrationEntry, FileEntry, GraphEntry, Manifest, Probe
from musicrt.runtime.spec import INT8, ORT, StageSpec
from musicrt.runtime.verify import probe_inputs, record_probe

CPU_INT8 = "cpu-int8"
"""The target, as the manifest names it; the other is `GPU_FP16`."""
WEIGHTS = "weights.int8.safetensors"


def store_int8(bundle: Bundle, models: Mapping[str, onnx.ModelProto], calibration: CalibrationEntry, threads: int | None = None) -> Bundle:
    """Give a bundle these graphs as its flavour `int8`, in the place of those that it may have; stages without one share that of `ort`.

    The models' own constants are moved out of them. To be called while nobody else changes the bundle. On an error the bundle is as it was,
    or, if that comes while files change places, without the flavour. Raises OutputError, BackendError, VerificationError for
    numbers that are not finite.
    """
    folder = bundle.path / STAGES
    probes = {name: _probe(bundle, bundle.spec.stage(name), model, threads) for name, model in models.items()}
    graphs = {stage.name: bundle.manifest.stages[stage.name].graphs[ORT] for stage in bundle.spec.stages}
    with contextlib.ExitStack() as files:
        weights = files.enter_context(new_file(folder / WEIGHTS))
        _move_constants(models, weights)
        for name, model in models.items():
            path = folder / f"{name}.int8.onnx"
            temporary = files.enter_context(new_file(path))
            temporary.write_bytes(model.SerializeToString())
            graphs[name] = GraphEntry(
                file=_entry(path, temporary),
                opset=next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")),
                precision="int8",
                error=calibration.stages[name].error,
                tolerance=bundle.spec.stage(name).tolerance_of(INT8),
                probe=probes[name],
            )
        manifest = _with_int8(bundle.manifest, _entry(folder / WEIGHTS, weights), graphs, calibration)
        manifest_text(manifest)  # fails now, and not when files have changed places
        if INT8 in bundle.flavours:  # a reader may come while files change places
            write_manifest(bundle.path, _without_int8(bundle.manifest))
    write_manifest(bundle.path, manifest)
    changed = Bundle.open(bundle.path)
    needed = {(bundle.path / name).resolve() for name in (MANIFEST, *(entry.path for entry in changed.files))}
    for file in _own_files(bundle.manifest):
        if (bundle.path / file).resolve() not in needed:
            (bundle.path / file).unlink(missing_ok=True)
    return changed


def _probe(bundle: Bundle, stage: StageSpec, model: onnx.ModelProto, threads: int | None) -> Probe:
    """What a graph makes of the inputs of the run that was recorded at export."""
    probe, typed = bundle.manifest.stages[stage.name].probe, stage.in_flavour(INT8)
    sizes = {axis.name: min(probe.sizes[axis.name], axis.maximum) for axis in typed.axes}
    feeds = probe_inputs(stage, sizes, probe.seed)
    own = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in typed.feeds}
    with open_model(typed, model, bundle.path / STAGES, threads) as session:
        return record_probe(sizes, probe.seed, session.run(own))


def _move_constants(models: Mapping[str, onnx.ModelProto], path: Path) -> None:
    """Write the larger constants that are inside of the graphs into one file, equal ones once, and make the graphs refer to it."""
    stored: dict[str, np.ndarray] = {}
    names: dict[bytes, str] = {}
    found: list[tuple[TensorProto, str]] = []
    for stage, model in models.items():
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                continue
            array = numpy_helper.to_array(tensor)
            if array.nbytes <= INLINE:
                continue
            content = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).data).digest()
            name = names.setdefault(content, f"graph.{stage}.{tensor.name}")
            stored.setdefault(name, np.ascontiguousarray(array))
            found.append((tensor, name))
    save_file(stored, path)
    places = tensor_places(path)
    for tensor, name in found:
        start, stop = places[name]
        for field in ("float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.raw_data = b""  # which the next call wants to be there
        set_external_data(tensor, WEIGHTS, start, stop - start)
        tensor.ClearField("raw_data")


def _with_int8(manifest: Manifest, weights: FileEntry, graphs: Mapping[str, GraphEntry], calibration: CalibrationEntry) -> Manifest:
    stages = {name: stage.model_copy(update={"graphs": {**stage.graphs, INT8: graphs[name]}}) for name, stage in manifest.stages.items()}
    more, calibrations = {**manifest.more_weights, INT8: weights}, {**manifest.calibrations, CPU_INT8: calibration}
    return manifest.model_copy(update={"stages": stages, "more_weights": more, "calibrations": calibrations})


def _without_int8(manifest: Manifest) -> Manifest:
    stages = {
        name: stage.model_copy(update={"graphs": {flavour: graph for flavour, graph in stage.graphs.items() if flavour != INT8}})
        for name, stage in manifest.stages.items()
    }
    more = {name: value for name, value in manifest.more_weights.items() if name != INT8}
    calibrations = {name: value for name, value in manifest.calibrations.items() if name != CPU_INT8}
    return manifest.model_copy(update={"stages": stages, "more_weights": more, "calibrations": calibrations})


def _own_files(manifest: Manifest) -> set[str]:
    """Files that belong to the flavour alone."""
    own = {stage.graphs[INT8].file.path for stage in manifest.stages.values() if INT8 in stage.graphs}
    weights = manifest.more_weights.get(INT8)
    return own - {stage.graphs[ORT].file.path for stage in manifest.stages.values()} | ({weights.path} if weights else set())


def _entry(path: Path, content: Path) -> FileEntry:
    """What the manifest says of a file that lies elsewhere for now."""
    return FileEntry(path=f"{STAGES}/{path.name}", bytes=content.stat().st_size, sha256=sha256_of(content))
