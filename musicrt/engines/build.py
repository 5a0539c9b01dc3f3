"""From the graphs of a bundle to plans beside them, stage by stage; what is there already and current is left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from musicrt.engines.compile import OnPhase, Plan, builder_options, compile_plan
from musicrt.engines.fingerprint import fingerprint
from musicrt.engines.layers import Report
from musicrt.engines.profiles import find_buckets, stage_profiles
from musicrt.runtime.bundle import ENGINES, Bundle
from musicrt.runtime.driver import cuda_obstacle, gpu_architecture
from musicrt.runtime.errors import BackendError, EngineError, InputError, OutputError
from musicrt.runtime.files import added_files, changing, new_file, sha256_of
from musicrt.runtime.manifest import FileEntry, PlanEntry
from musicrt.runtime.manifest_file import read_manifest, write_manifest
from musicrt.runtime.precision import TRT, TRT_INT8, Precision
from musicrt.runtime.tensorrt_family import TARGETS, Family, find_family

FLAVOURS: Mapping[Precision, str] = {"float16": TRT, "int8": TRT_INT8}
"""What engines of a precision are made from."""
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
    precision: Precision = "float16",
    stripped: bool = False,
    on_stage: Callable[[str, int, int], None] | None = None,
    on_phase: OnPhase | None = None,
) -> list[Built]:
    """Build the engines of a bundle's stages and note them in its manifest, each as soon as it is there.

    engine: a member of the family. targets: architectures ("sm_89"), all in one plan; by default those of `Family.targets`, or the
    machine's own. stages: all by default. profiles: names of `profiles.BUCKETS`, each a profile of the same engine.
    precision: "float16", or "int8" of the graphs that a calibration made; stages that it left alone have the engines of "float16".
    stripped: without weights, which come from the bundle when the engine is opened.
    on_stage: called with stage, done and total before each stage. on_phase: with phase, done and total within it.
    Raises BackendError, BundleError, EngineError, InputError, OutputError; plans that were built before the error stay.
    """
    family, buckets = find_family(engine), find_buckets(profiles)
    if precision not in FLAVOURS:
        raise InputError(f"got precision {precision!r}, expected {' or '.join(FLAVOURS)}: that of an engine is that of its graph")
    bundle = _open(Path(path))
    if reason := family.build_obstacle():
        raise BackendError(f"{engine} can't build here: {reason}")
    if stripped and (reason := cuda_obstacle()):
        raise BackendError(f"{engine} can't build stripped engines here: {reason}; leave --stripped out, or build on a machine with a GPU")
    archs = _choose_targets(family, targets)
    chosen = _choose_stages(bundle, stages)
    version, options = str(family.load().__version__), builder_options(family, stripped=stripped)
    built: list[Built] = []
    for done, name in enumerate(chosen):
        if on_stage:
            on_stage(name, done, len(chosen))
        flavour = bundle.flavour_of(name, FLAVOURS[precision])
        stage = bundle.spec.stage(name).in_flavour(flavour)
        graph, graph_entry = bundle.graph(name, flavour)
        folder = "-".join((engine, "+".join(archs), *(["int8"] if flavour == TRT_INT8 else []), *(["stripped"] if stripped else [])))
        ranges = stage_profiles(stage, buckets)
        key = fingerprint(bundle, name, flavour, engine=engine, version=version, targets=archs, profiles=ranges, options=options)
        if known := _find_current(bundle, folder, name, key):
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
        describe = partial(
            PlanEntry,
            key=key,
            engine=family.name,
            version=version,
            targets=archs,
            precision=graph_entry.precision,
            flavour=flavour,
            stripped=stripped,
            profiles=ranges,
            activation_bytes=plan.activation_bytes,
            weight_bytes=plan.weight_bytes,
        )
        bundle, entry = _store(bundle.path, folder, name, key, plan, report, describe)
        built.append(Built(name, folder, entry, plan.seconds))
    return built


def _open(path: Path) -> Bundle:
    """The bundle, without the plans whose files are gone or of another size: they are made again. Raises BundleError, OutputError."""
    read_manifest(path)  # it is a bundle
    with changing(path):
        manifest = read_manifest(path)
        engines = {
            folder: {name: plan for name, plan in plans.items() if all(_has_size(path, file) for file in (plan.file, plan.report))}
            for folder, plans in manifest.engines.items()
        }
        if engines != manifest.engines:
            write_manifest(path, manifest.model_copy(update={"engines": {folder: plans for folder, plans in engines.items() if plans}}))
    return Bundle.open(path)


def _has_size(root: Path, file: FileEntry) -> bool:
    path = root / file.path
    return path.is_file() and path.stat().st_size == file.bytes


def _find_current(bundle: Bundle, folder: str, stage: str, key: str) -> PlanEntry | None:
    """The plan of a stage that was made from the same, if its files are what they were."""
    known = bundle.manifest.engines.get(folder, {}).get(stage)
    if known is None or known.key != key:
        return None
    whole = all(sha256_of(bundle.path / file.path) == file.sha256 for file in (known.file, known.report))
    return known if whole else None


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


def _store(
    root: Path, folder: str, stage: str, key: str, plan: Plan, report: Report, describe: Callable[..., PlanEntry]
) -> tuple[Bundle, PlanEntry]:
    """Write a plan and its report, note them in the manifest as it is by now, and take away the files of the plan that they replace.

    Files have names that hold the key: what another manifest refers to is never changed. describe(file, report): the entry. An error
    leaves all as it was. Raises OutputError.
    """
    place = root / ENGINES / folder
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {place}: {error.strerror or error}; check the folder and its permissions") from None
    path = place / f"{stage}-{key[:_KEY_SHOWN]}.plan"
    notes = path.with_suffix(".json")
    with changing(root):
        bundle = Bundle.open(root)
        engines = {name: dict(plans) for name, plans in bundle.manifest.engines.items()}
        with added_files(place):
            with new_file(path) as temporary:
                temporary.write_bytes(plan.data)
            with new_file(notes) as temporary:
                temporary.write_text(report.model_dump_json() + "\n")
            entry = describe(file=_file_entry(root, path), report=_file_entry(root, notes))
            old = engines.setdefault(folder, {}).get(stage)
            engines[folder][stage] = entry
            manifest = bundle.manifest.model_copy(update={"engines": engines})
            write_manifest(root, manifest)
    if old is not None:
        for file in {old.file.path, old.report.path} - {entry.file.path, entry.report.path}:
            with contextlib.suppress(OSError):  # it is in nobody's way
                (root / file).unlink(missing_ok=True)
    return Bundle(root, manifest, bundle.spec), entry


def _file_entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
