"""From an official checkpoint to a bundle: trace every stage, store the weights once, measure, describe."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from musicrt.export.checkpoints import beside_checkpoint, hash_tensors, read_config
from musicrt.export.compact import round_weights
from musicrt.export.flavours import check_flavours, with_flavour
from musicrt.export.stages import OnStage, write_flavour
from musicrt.runtime.bundle import STAGES, Bundle, identity_of
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.files import new_folder, sha256_of
from musicrt.runtime.hub import find_files, locate_checkpoint
from musicrt.runtime.manifest import GraphEntry, LicenceEntry, Manifest, Probe, SourceEntry, StageEntry
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.precision import ORT
from musicrt.runtime.registry import build_spec, find_system, fit_spec, system_module
from musicrt.runtime.spec import ModelSpec, StageSpec, System

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
    flavours: Sequence[str] = (),
    half_weights: bool = False,
    on_stage: OnStage | None = None,
) -> Bundle:
    """Make a bundle at `out`, which must not exist yet; an error leaves nothing there.

    checkpoint: a folder or file in the official layout, a hub id, or None for the official hub repository.
    config: a JSON file of official hyper-parameters; None: config.json beside the checkpoint, if there is one.
    variant: hyper-parameters by name; None: those of that file, or without one the system's first. Both have to agree.
    description: said of the weights by `musicrt inspect`.
    weights_licence: of weights that are not the official ones.
    flavours: graphs beside those for ONNX Runtime: `trt`, in half precision for TensorRT. `add_flavour` adds them to a bundle later.
    half_weights: round all weights to half precision and store them so: half the size. They are computed with in single precision.
    on_stage: called with stage, done and total before each stage, once for each flavour.

    Raises CheckpointError, ConfigError, OutputError, VerificationError.
    """
    check_flavours(flavours)
    known, given = find_system(system), Path(config) if config else None
    asked = _choose_spec(known, variant, given)
    source = locate_checkpoint(asked.checkpoint, checkpoint)
    if given is None:
        asked = _choose_spec(known, variant, beside_checkpoint(source))
    paths, files = find_files(asked.checkpoint, source), read_checkpoint(asked.checkpoint, source)
    spec = fit_spec(asked, files)
    tensors = hash_tensors(files)  # first, because stages are folded in place
    stages: dict[str, nn.Module] = system_module(system, "stages").load_stages(files, spec.config)
    if half_weights:
        round_weights(stages[stage.name] for stage in spec.stages if not stage.host)
    hashes = {name: sha256_of(path) for name, path in paths.items()}
    official = LicenceEntry(code=known.licences.code, weights=known.licences.weights, weights_url=known.licences.weights_url)
    licences = LicenceEntry(code=official.code, weights=weights_licence, weights_url="") if weights_licence else official
    target = Path(out)
    with new_folder(target) as folder:
        (folder / STAGES).mkdir()
        weights, graphs, probes = write_flavour(folder, spec, stages, ORT, _shifted(on_stage, 0, flavours), half_weights=half_weights)
        entries = {stage.name: _describe(stage, graphs[stage.name], probes[stage.name]) for stage in spec.stages}
        manifest = Manifest(
            system=system,
            variant=spec.variant,
            config=dict(spec.config),
            defaults=dict(spec.defaults),
            sample_rate=spec.sample_rate,
            licences=licences,
            source=SourceEntry(description=description, files=hashes, tensors_sha256=tensors),
            identity=identity_of(system, spec.config, tensors),
            weights=weights,
            stages=entries,
            tools=dict(_tool_versions()),
        )
        for done, flavour in enumerate(flavours, 1):
            weights, graphs, _ = write_flavour(folder, spec, stages, flavour, _shifted(on_stage, done, flavours))
            manifest = with_flavour(manifest, flavour, weights, graphs)
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


def _describe(stage: StageSpec, graph: GraphEntry, probe: Probe) -> StageEntry:
    return StageEntry(
        inputs=[tensor.describe() for tensor in stage.inputs],
        outputs=[tensor.describe() for tensor in stage.outputs],
        states=[tensor.describe() for tensor in stage.states],
        graphs={ORT: graph},
        probe=probe,
    )


def _shifted(on_stage: OnStage | None, done: int, flavours: Sequence[str]) -> OnStage | None:
    """The progress of one flavour within that of all."""
    if on_stage is None:
        return None
    return lambda name, index, total: on_stage(name, done * total + index, (1 + len(flavours)) * total)


def _tool_versions() -> Iterator[tuple[str, str]]:
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
