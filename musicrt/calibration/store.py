"""Writing lowered graphs into a bundle: what changed goes into a file of its own, everything else stays where it is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save_file

from musicrt.calibration.graphs import open_model
from musicrt.runtime.bundle import INLINE, STAGES, TARGET_OF, Bundle
from musicrt.runtime.files import added_files, as_output_error, new_file, sha256_of, tensor_places
from musicrt.runtime.manifest import CalibrationEntry, FileEntry, GraphEntry, Manifest, Probe
from musicrt.runtime.manifest_file import MANIFEST, manifest_text, write_manifest
from musicrt.runtime.precision import LOWERED
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.verify import probe_inputs, record_probe

Entry = TypeVar("Entry")


def store_lowered(
    bundle: Bundle, flavour: str, models: Mapping[str, onnx.ModelProto], calibration: CalibrationEntry, threads: int | None = None
) -> Bundle:
    """Give a bundle these graphs as a flavour of `LOWERED`, in the place of those that it may have, and of engines that were made of them.

    Stages without one share that of the flavour beneath. The models' own constants are moved out of them. To be called while nobody else
    changes the bundle. On an error the bundle is as it was, or, if that comes while files change places, without the flavour: all is
    written before that. Raises OutputError, BackendError, VerificationError for numbers that are not finite.
    """
    folder = bundle.path / STAGES
    probes = {name: _probe(bundle, bundle.spec.stage(name), flavour, model, threads) for name, model in models.items()}
    graphs = {stage.name: bundle.manifest.stages[stage.name].graphs[LOWERED[flavour]] for stage in bundle.spec.stages}
    place = folder / f"weights.{flavour}.safetensors"
    # The manifest is the first here, and so takes its place as the last.
    with new_file(bundle.path / MANIFEST) as content, added_files(folder), contextlib.ExitStack() as files:
        weights = files.enter_context(new_file(place))
        _move_constants(models, weights, place.name)
        for name, model in models.items():
            path = folder / f"{name}.{flavour}.onnx"
            temporary = files.enter_context(new_file(path))
            temporary.write_bytes(model.SerializeToString())
            graphs[name] = GraphEntry(
                file=_entry(path, temporary),
                opset=next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")),
                precision="int8",
                error=calibration.stages[name].error,
                tolerance=bundle.spec.stage(name).tolerance_of(flavour),
                probe=probes[name],
            )
        manifest = _with(bundle.manifest, flavour, _entry(place, weights), graphs, calibration)
        with as_output_error(bundle.path / MANIFEST):
            content.write_text(manifest_text(manifest))
        if flavour in bundle.flavours:  # a reader may come while files change places
            write_manifest(bundle.path, _without(bundle.manifest, flavour))
    changed = Bundle.open(bundle.path)
    needed = {(bundle.path / name).resolve() for name in (MANIFEST, *(entry.path for entry in changed.files))}
    for file in _own_files(bundle.manifest, flavour):
        if (bundle.path / file).resolve() not in needed:
            (bundle.path / file).unlink(missing_ok=True)
    return changed


def _probe(bundle: Bundle, stage: StageSpec, flavour: str, model: onnx.ModelProto, threads: int | None) -> Probe:
    """What a graph makes of the inputs of the run that was recorded at export."""
    probe, typed = bundle.manifest.stages[stage.name].probe, stage.in_flavour(flavour)
    sizes = {axis.name: min(probe.sizes[axis.name], axis.maximum) for axis in typed.axes}
    feeds = probe_inputs(stage, sizes, probe.seed)
    own = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in typed.feeds}
    with open_model(typed, model, bundle.path / STAGES, threads) as session:
        return record_probe(sizes, probe.seed, session.run(own))


def _move_constants(models: Mapping[str, onnx.ModelProto], path: Path, called: str) -> None:
    """Write the larger constants that are inside of the graphs into one file, equal ones once; the graphs then refer to it by a name."""
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
        set_external_data(tensor, called, start, stop - start)
        tensor.ClearField("raw_data")


def _with(
    manifest: Manifest, flavour: str, weights: FileEntry, graphs: Mapping[str, GraphEntry], calibration: CalibrationEntry
) -> Manifest:
    clean = _without(manifest, flavour)
    stages = {name: stage.model_copy(update={"graphs": {**stage.graphs, flavour: graphs[name]}}) for name, stage in clean.stages.items()}
    more, calibrations = {**clean.more_weights, flavour: weights}, {**clean.calibrations, TARGET_OF[flavour]: calibration}
    return clean.model_copy(update={"stages": stages, "more_weights": more, "calibrations": calibrations})


def _without(manifest: Manifest, flavour: str) -> Manifest:
    stages = {name: stage.model_copy(update={"graphs": _but(stage.graphs, flavour)}) for name, stage in manifest.stages.items()}
    plans = {
        folder: {stage: plan for stage, plan in plans.items() if plan.flavour != flavour} for folder, plans in manifest.engines.items()
    }
    return manifest.model_copy(
        update={
            "stages": stages,
            "more_weights": _but(manifest.more_weights, flavour),
            "calibrations": _but(manifest.calibrations, TARGET_OF[flavour]),
            "engines": {folder: left for folder, left in plans.items() if left},
        }
    )


def _but(entries: Mapping[str, Entry], name: str) -> dict[str, Entry]:
    return {key: entry for key, entry in entries.items() if key != name}


def _own_files(manifest: Manifest, flavour: str) -> set[str]:
    """Files that belong to the flavour alone."""
    own = {stage.graphs[flavour].file.path for stage in manifest.stages.values() if flavour in stage.graphs}
    plans = [plan for plans in manifest.engines.values() for plan in plans.values() if plan.flavour == flavour]
    more = {
        entry.path
        for entry in (manifest.more_weights.get(flavour), *(file for plan in plans for file in (plan.file, plan.report)))
        if entry
    }
    return own - {stage.graphs[LOWERED[flavour]].file.path for stage in manifest.stages.values()} | more


def _entry(path: Path, content: Path) -> FileEntry:
    """What the manifest says of a file that lies elsewhere for now."""
    return FileEntry(path=f"{STAGES}/{path.name}", bytes=content.stat().st_size, sha256=sha256_of(content))
