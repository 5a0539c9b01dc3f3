"""From the graphs of a bundle to plans beside them, stage by stage; what is there already and current is left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from musicrt.engines.compile import OnPhase, Plan, builder_options, compile_plan
from musicrt.engines.fingerprint import fingerprint
from musicrt.engines.layers import Report
from musicrt.engines.profiles import find_buckets, stage_profiles
from musicrt.runtime.bundle import ENGINES, MANIFEST, Bundle
from musicrt.runtime.driver import cuda_obstacle, gpu_architecture
from musicrt.runtime.errors import BackendError, EngineError, InputError, OutputError
from musicrt.runtime.files import new_file, sha256_of
from musicrt.runtime.manifest import FileEntry, PlanEntry
from musicrt.runtime.tensorrt_family import TARGETS, Family, find_family

FLAVOUR = "trt"
_KEY_SHOWN = 12  # characters of the key in a file's name


@dataclass(frozen=True)
class Built:
    """One stage's plan. `seconds`: of building it; None where it was there already."""

    stage: str
    folder: str
    entry: PlanEntry
    seconds: float | None


def build_engines(
    path: Path | str,
    engine: str = "tensorrt-rtx",
    *,
    targets: Sequence[str] = (),
    stages: Sequence[str] = (),
    profiles: Sequence[str] = ("latency",),
    stripped: bool = False,
    on_stage: Callable[[str, int, int], None] | None = None,
    on_phase: OnPhase | None = None,
) -> list[Built]:
    """Build the engines of a bundle's stages and note them in its manifest, each as soon as it is there.

    engine: a member of the family. targets: architectures ("sm_89"), all in one plan; by default those of `Family.targets`, or the
    machine's own. stages: all by default. profiles: names of `profiles.BUCKETS`, each a profile of the same engine.
    stripped: without weights, which come from the bundle when the engine is opened.
    on_stage(stage, done, total): called before each stage; on_phase(phase, done, total): within it.
    Raises BackendError, BundleError, EngineError, InputError, OutputError; plans that were built before the error stay.
    """
    bundle, family, buckets = Bundle.open(path), find_family(engine), find_buckets(profiles)
    if reason := family.build_obstacle():
        raise BackendError(f"{engine} can't build here: {reason}")
    if stripped and (reason := cuda_obstacle()):
        raise BackendError(f"{engine} can't build stripped engines here: {reason}; leave --stripped out, or build on a machine with a GPU")
    archs = _choose_targets(family, targets)
    chosen = _choose_stages(bundle, stages)
    folder = "-".join((engine, "+".join(archs), *(("stripped",) if stripped else ())))
    version, options = str(family.load().__version__), builder_options(family, stripped=stripped)
    built: list[Built] = []
    for done, name in enumerate(chosen):
        if on_stage:
            on_stage(name, done, len(chosen))
        stage = bundle.spec.stage(name).in_flavour(FLAVOUR)
        graph, graph_entry = bundle.graph(name, FLAVOUR)
        ranges = stage_profiles(stage, buckets)
        key = fingerprint(bundle, name, FLAVOUR, engine=engine, version=version, targets=archs, profiles=ranges, options=options)
        known = bundle.manifest.engines.get(folder, {}).get(name)
        if known is not None and known.key == key:
            built.append(Built(name, folder, known, None))
            continue
        plan = compile_plan(family, stage, graph, ranges, targets=archs, stripped=stripped, on_phase=on_phase)
        report = Report(
            stage=name,
            seconds=round(plan.seconds, 3),
            activation_bytes=plan.activation_bytes,
            weight_bytes=plan.weight_bytes,
            profiles=ranges,
            layers=plan.layers,
        )
        file, notes = _write_plan(bundle.path, f"{ENGINES}/{folder}/{name}-{key[:_KEY_SHOWN]}", plan, report)
        entry = PlanEntry(
            file=file,
            report=notes,
            key=key,
            engine=family.name,
            version=version,
            targets=archs,
            precision=graph_entry.precision,
            flavour=FLAVOUR,
            stripped=stripped,
            profiles=ranges,
            activation_bytes=plan.activation_bytes,
            weight_bytes=plan.weight_bytes,
        )
        bundle = _note(bundle, folder, name, entry)
        built.append(Built(name, folder, entry, plan.seconds))
    return built


def _choose_targets(family: Family, asked: Sequence[str]) -> list[str]:
    """Architectures in a fixed order. Raises InputError for one that can't be built for, EngineError where the GPU has none."""
    if family.ahead:
        chosen = asked or family.targets
        unknown = [target for target in chosen if target not in TARGETS]
        if unknown:
            raise InputError(f"got the target {unknown[0]!r}, expected some of {', '.join(TARGETS)}")
        return [target for target in TARGETS if target in chosen]
    own = gpu_architecture()
    if own is None:
        raise EngineError(
            f"{family.name} builds for the GPU of this machine, whose driver does not tell its architecture; update the driver"
        )
    if set(asked) - {own}:
        raise InputError(
            f"got the targets {', '.join(asked)}: {family.name} builds on the machine that runs the engine, and this one is {own}"
        )
    return [own]


def _choose_stages(bundle: Bundle, asked: Sequence[str]) -> list[str]:
    """Names in the order of the spec. Raises InputError for an unknown one."""
    known = [stage.name for stage in bundle.spec.stages]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"{bundle.manifest.system} has no stage {unknown[0]!r}; known: {', '.join(known)}")
    return [name for name in known if not asked or name in asked]


def _write_plan(root: Path, place: str, plan: Plan, report: Report) -> tuple[FileEntry, FileEntry]:
    """Write plan and report under names that hold the key: what another manifest refers to is never changed. Raises OutputError."""
    path, notes = root / f"{place}.plan", root / f"{place}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path.parent}: {error.strerror or error}; check the folder and its permissions") from None
    with new_file(path) as temporary:
        temporary.write_bytes(plan.data)
    with new_file(notes) as temporary:
        temporary.write_text(report.model_dump_json() + "\n")
    return _file_entry(root, path), _file_entry(root, notes)


def _note(bundle: Bundle, folder: str, stage: str, entry: PlanEntry) -> Bundle:
    """Put a plan into the manifest, and take away the files of the one that it replaces."""
    engines = {name: dict(plans) for name, plans in bundle.manifest.engines.items()}
    old = engines.setdefault(folder, {}).get(stage)
    engines[folder][stage] = entry
    manifest = bundle.manifest.model_copy(update={"engines": engines})
    with new_file(bundle.path / MANIFEST) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1) + "\n")
    if old is not None:
        for file in {old.file.path, old.report.path} - {entry.file.path, entry.report.path}:
            with contextlib.suppress(OSError):  # it is in nobody's way
                (bundle.path / file).unlink(missing_ok=True)
    return Bundle(bundle.path, manifest, bundle.spec)


def _file_entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
