"""From an official checkpoint to a bundle: trace every stage, store the weights once, measure, describe."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from musicrt.export.checkpoints import beside_checkpoint, hash_tensors, read_config
from musicrt.export.graphs import OPSET, trace_stage, write_weights
from musicrt.runtime.backends.onnxruntime import FLAVOUR, OnnxCpu
from musicrt.runtime.backends.torch import TorchSession
from musicrt.runtime.bundle import MANIFEST, STAGES, WEIGHTS, Bundle, identity_of
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.errors import ConfigError, VerificationError
from musicrt.runtime.files import new_folder, sha256_of
from musicrt.runtime.hub import find_files, locate_checkpoint
from musicrt.runtime.manifest import FileEntry, GraphEntry, LicenceEntry, Manifest, SourceEntry, StageEntry
from musicrt.runtime.registry import build_spec, find_system, fit_spec, system_module
from musicrt.runtime.spec import ModelSpec, StageSpec, System
from musicrt.runtime.verify import probe_inputs, probe_sizes, record_probe, relative_error

_SEED = 20240808
_TOOLS = ("musicrt", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_bundle(
    system: str,
    checkpoint: str | Path | None,
    out: str | Path,
    *,
    variant: str | None = None,
    config: str | Path | None = None,
    description: str = "",
    weights_licence: str | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
) -> Bundle:
    """Make a bundle at `out`, which must not exist yet; an error leaves nothing there.

    checkpoint: a folder or file in the official layout, a hub id, or None for the official hub repository.
    config: a JSON file of official hyper-parameters; None: config.json beside the checkpoint, if there is one.
    variant: hyper-parameters by name; None: those of that file, or without one the system's first. Both have to agree.
    description: said of the weights by `musicrt inspect`.
    weights_licence: of weights that are not the official ones.
    on_stage(stage, done, total): called before each stage. Raises CheckpointError, ConfigError, OutputError, VerificationError.
    """
    known, given = find_system(system), Path(config) if config else None
    asked = _choose_spec(known, variant, given)
    source = locate_checkpoint(asked.checkpoint, checkpoint)
    if given is None:
        asked = _choose_spec(known, variant, beside_checkpoint(source))
    paths, files = find_files(asked.checkpoint, source), read_checkpoint(asked.checkpoint, source)
    spec = fit_spec(asked, files)
    tensors = hash_tensors(files)  # first, because stages are folded in place
    stages: dict[str, nn.Module] = system_module(system, "stages").load_stages(files, spec.config)
    hashes = {name: sha256_of(path) for name, path in paths.items()}
    official = LicenceEntry(code=known.licences.code, weights=known.licences.weights, weights_url=known.licences.weights_url)
    licences = LicenceEntry(code=official.code, weights=weights_licence, weights_url="") if weights_licence else official
    target = Path(out)
    with new_folder(target) as folder:
        (folder / STAGES).mkdir()
        models: dict[str, ir.Model] = {}
        for done, stage in enumerate(spec.stages):
            if on_stage:
                on_stage(stage.name, done, len(spec.stages))
            models[stage.name] = trace_stage(stage, stages[stage.name], probe_inputs(stage, probe_sizes(stage, 2), _SEED))
        write_weights(folder / STAGES / WEIGHTS, dict(nn.ModuleDict(stages).named_parameters()), models)
        entries = {stage.name: _write_stage(folder, stage, stages[stage.name], models[stage.name]) for stage in spec.stages}
        manifest = Manifest(
            system=system,
            variant=spec.variant,
            config=dict(spec.config),
            defaults=dict(spec.defaults),
            sample_rate=spec.sample_rate,
            licences=licences,
            source=SourceEntry(description=description, files=hashes, tensors_sha256=tensors),
            identity=identity_of(system, spec.config, tensors),
            weights=_file_entry(folder, folder / STAGES / WEIGHTS),
            stages=entries,
            tools=dict(_tool_versions()),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        Bundle.open(folder)
    return Bundle.open(target)


def _choose_spec(system: System, variant: str | None, config: Path | None) -> ModelSpec:
    """That of a file of hyper-parameters if there is one, else of a variant (None: the first). Raises ConfigError if they disagree."""
    name = next(iter(system.variants)) if variant is None else variant
    if name not in system.variants:
        raise ConfigError(f"{system.name} has no variant {name!r}; known: {', '.join(system.variants)}")
    if config is None:
        return build_spec(system.name, system.variants[name], name)
    custom = build_spec(system.name, read_config(config), "custom")
    if variant is not None:
        asked = build_spec(system.name, system.variants[variant], variant).config
        differing = [key for key, value in asked.items() if value not in (None, custom.config[key])]  # None: the weights tell
        if differing:
            raise ConfigError(
                f"got variant {variant!r}, but {config} says otherwise of {', '.join(differing)}; "
                "leave the variant out to take the file, or move the file away"
            )
        return build_spec(system.name, custom.config, variant)
    named = (build_spec(system.name, values, known) for known, values in system.variants.items())
    return next((spec for spec in named if spec.config == custom.config), custom)


def _write_stage(folder: Path, stage: StageSpec, module: nn.Module, model: ir.Model) -> StageEntry:
    """Save a graph, hold it against torch at two sets of sizes, and keep one of the runs. Raises VerificationError."""
    path = folder / STAGES / f"{stage.name}.onnx"
    ir.save(model, path)
    errors: list[float] = []
    with OnnxCpu().open_graph(stage, path) as exported, TorchSession(stage, module) as reference:
        for sizes in (probe_sizes(stage, 3), probe_sizes(stage, 1)):
            feeds = probe_inputs(stage, sizes, _SEED)
            expected = reference.run(feeds)
            errors.append(relative_error(exported.run(feeds), expected))
    error = float(np.max(errors))  # unlike max(), NaN if one is
    if not error <= stage.tolerance.rel_l2:
        raise VerificationError(
            f"stage {stage.name}: the graph is {error:.1e} from torch, allowed {stage.tolerance.rel_l2:.0e}; nothing was written"
        )
    graph = GraphEntry(file=_file_entry(folder, path), opset=OPSET, precision="float32", error=error, tolerance=stage.tolerance.rel_l2)
    return StageEntry(
        inputs=[tensor.describe() for tensor in stage.inputs],
        outputs=[tensor.describe() for tensor in stage.outputs],
        states=[tensor.describe() for tensor in stage.states],
        graphs={FLAVOUR: graph},
        probe=record_probe(sizes, _SEED, expected),
    )


def _file_entry(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


def _tool_versions() -> Iterator[tuple[str, str]]:
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
