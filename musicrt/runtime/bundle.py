"""A bundle: a model on disk that can be copied to a machine without torch.

BUNDLE/manifest.json            what it is, hashes of everything else
BUNDLE/manifest.sig             a signature of that, where somebody has signed it
BUNDLE/stages/<stage>.onnx      one graph per stage
BUNDLE/stages/weights.safetensors   the weights, once; the graphs refer into it, torch reads it directly
BUNDLE/stages/<stage>.trt.onnx  the same in half precision, where the bundle has that flavour
BUNDLE/stages/weights.half.safetensors   what those graphs need beside the weights
BUNDLE/stages/<stage>.int8.onnx  with 8-bit integers, of the stages where that serves; the others have their float32 graphs once more
BUNDLE/stages/weights.int8.safetensors   what those graphs need beside the weights
BUNDLE/stages/<stage>.trt-int8.onnx, weights.trt-int8.safetensors   the same of the graphs in half precision, for TensorRT
BUNDLE/engines/<name>/          TensorRT plans of the stages, and what is known of their layers
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from musicrt.runtime.errors import BackendError, BundleError, ConfigError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.graph_file import check_graph
from musicrt.runtime.manifest import FileEntry, GraphEntry, Manifest, PlanEntry
from musicrt.runtime.manifest_file import read_manifest
from musicrt.runtime.precision import INT8, LOWERED, ORT, TRT, TRT_INT8
from musicrt.runtime.registry import build_spec, system_names
from musicrt.runtime.spec import ModelSpec
from musicrt.runtime.watched_files import WatchedFiles

STAGES = "stages"
ENGINES = "engines"
WEIGHTS = "weights.safetensors"
INLINE = 1024  # bytes up to which a constant stays in its graph
CPU_INT8, GPU_FP16, GPU_INT8 = "cpu-int8", "gpu-fp16", "gpu-int8"
"""What a bundle may be calibrated for. The pins of `GPU_FP16` hold for the flavour `trt`, the others make flavours."""
TARGET_OF: Mapping[str, str] = {INT8: CPU_INT8, TRT_INT8: GPU_INT8}
"""The calibration that makes each flavour of 8-bit integers."""
KEPT_IN: Mapping[str, str] = {CPU_INT8: "float32", GPU_INT8: "float16"}
"""What layers are in that such a calibration leaves alone."""
_PRECISIONS = {
    ORT: ("float32",),
    TRT: ("float16", "float32"),
    INT8: ("int8", "float32"),
    TRT_INT8: ("int8", "float16", "float32"),
}
"""What a graph of each flavour may be in."""

EMBEDDED = Path(__file__).parents[1] / "bundles" / "music2latent-nano"
"""The small bundle that is part of the package: the nano codec, trained on music that the project synthesises itself."""


class Bundle:
    """An opened bundle. `Bundle.open` is the way to get one. What reads its files asks `watched` whether they are still those."""

    def __init__(self, path: Path, manifest: Manifest, spec: ModelSpec) -> None:
        self.path, self.manifest, self.spec = path, manifest, spec
        self._root = path.resolve()  # where `path` is a link, what it leads to now, for as long as this is open
        self._checked: set[Path] = set()
        self.watched = WatchedFiles(self._root)

    @classmethod
    def open(cls, path: Path | str, *, check: Literal["sizes", "hashes"] = "sizes", trusted_key: Path | str | None = None) -> Bundle:
        """Read and validate a bundle. Raises BundleError for anything missing, damaged, foreign or outside the folder.

        trusted_key: a public key (`signature`); whatever was not signed with it is refused, and hashes are checked.
        """
        path = Path(path)
        manifest = read_manifest(path, None if trusted_key is None else Path(trusted_key))
        if manifest.system not in system_names():
            raise BundleError(
                f"{path} holds the system {manifest.system!r}, this version knows {', '.join(system_names())}; update musicrt"
            )
        try:
            spec = build_spec(manifest.system, manifest.config, manifest.variant)
        except ConfigError as error:
            raise BundleError(f"{path} has a damaged configuration: {error}; copy or export the bundle again") from None
        halves = manifest.calibrations.get(GPU_FP16)
        bundle = cls(path, manifest, spec.pinned(halves.pins) if halves else spec)
        bundle._check_manifest()
        missing = {stage.name for stage in bundle.spec.stages} - set(manifest.stages)
        if missing:
            raise BundleError(f"{path} lacks the stages {', '.join(sorted(missing))}; export it again")
        engines = {file.path: plan.engine for plan in bundle._plans for file in (plan.file, plan.report)}
        for entry in bundle.files:
            remedy = "copy the whole folder again"
            if engine := engines.get(entry.path):
                remedy = f"make the engines again with: musicrt build {path} --engine {engine}"
            bundle._check_file(entry, remedy, hashes=check == "hashes" or trusted_key is not None)
        if read_manifest(bundle._root) != manifest:  # another bundle has taken its place since, or somebody adds to it
            return cls.open(path, check=check, trusted_key=trusted_key)
        return bundle

    @property
    def identity(self) -> str:
        """What encoded audio belongs to: the same for every bundle of the same weights and configuration."""
        return self.manifest.identity

    @property
    def files(self) -> list[FileEntry]:
        """Every file but the manifest."""
        graphs = [graph.file for stage in self.manifest.stages.values() for graph in stage.graphs.values()]
        plans = [file for plan in self._plans for file in (plan.file, plan.report)]
        return [self.manifest.weights, *self.manifest.more_weights.values(), *graphs, *plans]

    @property
    def _plans(self) -> list[PlanEntry]:
        return [plan for plans in self.manifest.engines.values() for plan in plans.values()]

    @property
    def flavours(self) -> list[str]:
        """Those of which every stage has a graph."""
        graphs = [stage.graphs for stage in self.manifest.stages.values()]
        return [flavour for flavour in graphs[0] if all(flavour in given for given in graphs)]

    def require_flavour(self, flavour: str) -> None:
        """Raises BackendError, with the command that adds it, where a stage has no graph of that flavour."""
        if flavour not in self.flavours:
            have = ", ".join(self.flavours) or "none"
            raise BackendError(f"{self.path} has no {flavour!r} graphs, only {have}; {_remedy(flavour, self.path)}")

    @property
    def weights(self) -> Path:
        """The file of weights that graphs of most flavours and torch read."""
        return self._root / self.manifest.weights.path

    def graph(self, stage: str, flavour: str) -> tuple[Path, GraphEntry]:
        """A stage's graph of one flavour. Raises BundleError if the bundle has none, or one that must not be opened (`graph_file`)."""
        entry = self._graph_entry(stage, flavour)
        path = self._root / entry.file.path
        if path not in self._checked:
            weights = [self._root / file.path for file in (self.manifest.weights, *self.manifest.more_weights.values())]
            check_graph(path, {one.name for one in weights if one.parent == path.parent})
            self._checked.add(path)
        return path, entry

    def flavour_of(self, stage: str, flavour: str) -> str:
        """The flavour that a stage's graph of this one was made for: what was not lowered is of the flavour beneath. Raises BundleError."""
        return flavour if self.graph(stage, flavour)[1].precision == "int8" else LOWERED.get(flavour, flavour)

    def weight_files(self, flavour: str) -> list[FileEntry]:
        """The files of weights that graphs of a flavour may refer to."""
        more = self.manifest.more_weights
        return [self.manifest.weights, *(more[name] for name in (LOWERED.get(flavour, ORT), flavour) if name in more)]

    def plans(self, engine: str, stage: str, flavour: str) -> dict[str, PlanEntry]:
        """A stage's plans of a flavour for one member of the TensorRT family, by the name of their folder."""
        found = {name: plans[stage] for name, plans in self.manifest.engines.items() if stage in plans}
        return {name: plan for name, plan in found.items() if (plan.engine, plan.flavour) == (engine, flavour)}

    def plan_file(self, plan: PlanEntry) -> Path:
        """Where a plan lies."""
        return self._root / plan.file.path

    def graph_files(self, stage: str, flavour: str) -> list[FileEntry]:
        """What is read to open a stage's graph of a flavour. Raises BundleError if the bundle has none."""
        return [self._graph_entry(stage, flavour).file, *self.weight_files(flavour)]

    def _graph_entry(self, stage: str, flavour: str) -> GraphEntry:
        graphs = self.manifest.stages[stage].graphs
        if flavour not in graphs:
            have = ", ".join(graphs) or "none"
            raise BundleError(f"{self.path} has no {flavour!r} graph of stage {stage!r}, only {have}; {_remedy(flavour, self.path)}")
        return graphs[flavour]

    def _check_manifest(self) -> None:
        """What the manifest says in two ways must agree: a changed hyper-parameter, rate or tensor shows here."""
        manifest, spec = self.manifest, self.spec
        if identity_of(manifest.system, manifest.config, manifest.source.tensors_sha256) != manifest.identity:
            raise BundleError(f"{self.path}: the manifest's identity does not fit its configuration; copy or export the bundle again")
        if manifest.sample_rate != spec.sample_rate or manifest.defaults != dict(spec.defaults) or manifest.config != dict(spec.config):
            raise BundleError(f"{self.path}: the manifest's rate or defaults do not fit its configuration; export the bundle again")
        for stage in spec.stages:
            entry = manifest.stages.get(stage.name)
            words = [tensor.describe() for tensor in (*stage.inputs, *stage.outputs, *stage.states)]
            if entry is not None and [*entry.inputs, *entry.outputs, *entry.states] != words:
                raise BundleError(f"{self.path}: stage {stage.name!r} has other tensors than this version knows; export the bundle again")
        unknown = {name for entry in manifest.calibrations.values() for name in (*entry.stages, *entry.pins)} - {
            one.name for one in spec.stages
        }
        if unknown:
            raise BundleError(
                f"{self.path}: a calibration names the stage {min(unknown)!r}, which this version does not know; calibrate again"
            )
        for name, entry in manifest.stages.items():
            for flavour, graph in entry.graphs.items():
                if graph.precision not in _PRECISIONS.get(flavour, ()):
                    raise BundleError(
                        f"{self.path}: the {flavour!r} graph of stage {name!r} is said to be in {graph.precision}; export the bundle again"
                    )
        axes = {stage.name: {axis.name for axis in stage.axes} for stage in spec.stages}
        for folder, name, plan in ((folder, *one) for folder, plans in manifest.engines.items() for one in plans.items()):
            if name not in axes or not plan.profiles or any(profile.axes.keys() != axes[name] for profile in plan.profiles):
                raise BundleError(
                    f"{self.path}: the engine of {name!r} in {folder!r} fits no stage that this version knows; "
                    "copy or export the bundle again"
                )

    def _check_file(self, entry: FileEntry, remedy: str, *, hashes: bool) -> None:
        path = self._root / entry.path
        try:
            inside, exists = path.resolve().is_relative_to(self._root), path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a loop of links
            raise BundleError(f"{self.path}: the manifest names {entry.path!r}: {error}; do not use this bundle") from None
        if not inside:
            raise BundleError(f"{self.path}: the manifest names {entry.path!r}, which lies outside of the bundle; do not use this bundle")
        if not exists:
            raise BundleError(f"{self.path} lacks {entry.path!r}; {remedy}")
        size = self.watched.note(entry)
        if size != entry.bytes:
            raise BundleError(f"{self.path / entry.path} has {size} bytes, the manifest says {entry.bytes}; {remedy}")
        if hashes and sha256_of(path) != entry.sha256:
            raise BundleError(f"{self.path / entry.path} does not have the SHA-256 of the manifest: it was changed or damaged; {remedy}")


def _remedy(flavour: str, path: Path) -> str:
    if flavour in TARGET_OF:
        return f"make them with: musicrt calibrate {path} --target {TARGET_OF[flavour]}"
    return f"add them with: musicrt add-flavour {path} {flavour}" if flavour == TRT else "export it again"


def identity_of(system: str, config: Mapping[str, Any], tensors_sha256: str) -> str:
    """Hex SHA-256 of what gives encoded values their meaning: system, hyper-parameters, weights."""
    text = json.dumps([system, dict(config), tensors_sha256], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
