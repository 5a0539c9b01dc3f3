"""Every stage of every system becomes an engine; nothing is built in vain, and a failure leaves the bundle as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from musicrt.engines import build as building
from musicrt.engines.build import build_engines
from musicrt.engines.compile import compile_plan
from musicrt.engines.inspect import inspect_engines, read_engine, read_report
from musicrt.engines.layers import is_island
from musicrt.engines.profiles import LONGEST
from musicrt.runtime import tensorrt_family
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError, BundleError, EngineError, InputError, OutputError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.precision import kept_name
from musicrt.runtime.registry import system_names
from musicrt.runtime.spec import StageSpec
from tests.conftest import ForSystem, refused

pytest.importorskip("tensorrt_rtx")
TARGETS = ["sm_86", "sm_89", "sm_120"]
ISLANDS: dict[str, dict[str, set[str]]] = {
    "mucodec": {
        "muq": {"LayerNormalization"},
        "condition": set(),
        "context": set(),
        "estimator": {"LayerNormalization"},
        "vae": {"GroupNormalization"},
        "vocoder": {"Conv", "Tanh"},
        "vae-encoder": {"Exp", "GroupNormalization"},
    },
    "music2latent": {name: {"GroupNormalization", "Softmax"} for name in ("encoder", "pyramid", "denoiser", "decoder")},
    "semanticodec": {
        "audiomae": {"LayerNormalization", "ReduceMean"},
        "residual": set(),
        "conditioning": set(),
        "denoiser": {"GroupNormalization", "LayerNormalization"},
        "vae": {"GroupNormalization"},
        "vocoder": {"Conv", "Tanh"},
    },
    "vidmuse": {
        "visual": {"LayerNormalization"},
        "local": {"LayerNormalization"},
        "global": {"LayerNormalization"},
        "fuse": {"LayerNormalization"},
        "cross": set(),
        "lm": {"LayerNormalization", "ReduceSum", "Softmax"},
        "codec-encoder": {"LSTM"},
        "recurrence": {"LSTM"},
        "synthesis": {"Conv", "Mul"},
    },
}
"""Operators that compute in float32, by system and stage in half precision; those that compute positions are left out."""
FOLDER = "tensorrt-rtx-sm_86+sm_89+sm_120"


@pytest.fixture(scope="module", params=system_names())
def built(request: pytest.FixtureRequest, half_bundles: ForSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each system with engines of all stages."""
    bundle = Path(shutil.copytree(half_bundles(request.param), tmp_path_factory.mktemp("engines") / request.param))
    told: list[tuple[str, int, int]] = []
    made = build_engines(bundle, targets=TARGETS, on_stage=lambda *stage: told.append(stage))
    names = [stage.name for stage in Bundle.open(bundle).spec.stages]
    assert told == [(name, done, len(names)) for done, name in enumerate(names)]
    assert [(one.stage, one.folder) for one in made] == [(name, FOLDER) for name in names]
    assert all(one.seconds is not None and one.seconds > 0 for one in made)
    return bundle


@pytest.fixture
def copy(half_bundles: ForSystem, tmp_path: Path) -> Path:
    """A small bundle to build engines of."""
    return Path(shutil.copytree(half_bundles("music2latent"), tmp_path / "bundle"))


def test_every_stage_has_a_strongly_typed_engine_in_half_precision(built: Path) -> None:
    bundle = Bundle.open(built, check="hashes")
    for stage, found in zip(bundle.spec.stages, inspect_engines(bundle), strict=True):
        entry = found.entry
        assert (found.stage, entry.engine, entry.targets, entry.flavour, entry.stripped) == (
            stage.name,
            "tensorrt-rtx",
            TARGETS,
            "trt",
            False,
        )
        assert entry.precision == ("float32" if stage.half is None else "float16")
        assert entry.activation_bytes is not None
        assert entry.file.bytes > 50_000
        longest = [LONGEST] if any(axis.longest for axis in stage.axes) else []
        assert [profile.bucket for profile in entry.profiles] == ["latency", *longest]
        assert entry.profiles[0].axes.keys() == {axis.name for axis in stage.axes}
        assert found.report.layers


def test_float32_is_on_the_islands_and_nowhere_else(built: Path) -> None:
    bundle = Bundle.open(built)
    for found in inspect_engines(bundle):
        half = bundle.spec.stage(found.stage).half
        if half is None:
            assert found.totals["float16"] == 0
            continue
        computed = [layer for layer in found.report.layers if layer.computes and "float" in layer.precision]
        wrong = [layer for layer in computed if layer.precision != ("float32" if is_island(half, layer) else "float16")]
        assert wrong == []
        assert found.undeclared == []
        for module in half.modules:
            assert any(layer.node.startswith(kept_name(module, "")) for layer in computed), "a module that is kept in float32 computes"
        islands = {layer.operator for layer in computed if layer.precision == "float32" and not layer.positions}
        assert islands == ISLANDS[bundle.manifest.system][found.stage], found.stage


def test_nothing_is_built_again_until_something_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**options: Any) -> dict[str, bool]:
        options = {"targets": TARGETS, "stages": ["conditioning", "frontend"], **options}
        return {one.stage: one.seconds is not None for one in build_engines(copy, **options)}

    assert build() == {"frontend": True, "conditioning": True}
    first = Bundle.open(copy).manifest.engines[FOLDER]
    text = (copy / MANIFEST).read_bytes()
    assert build() == build(targets=TARGETS[::-1]) == {"frontend": False, "conditioning": False}
    assert (copy / MANIFEST).read_bytes() == text
    # Other sizes: what depends on them is built again, in the place of the old files.
    assert build(profiles=["edge"]) == {"frontend": True, "conditioning": False}
    second = Bundle.open(copy, check="hashes").manifest.engines[FOLDER]
    assert second["frontend"].key != first["frontend"].key
    assert not (copy / first["frontend"].file.path).exists()
    assert not (copy / first["frontend"].report.path).exists()
    # Other builder options, another version: all of it.
    monkeypatch.setattr(building, "builder_options", lambda *_, **__: ("OTHER",))
    monkeypatch.setattr(building, "compile_plan", fail_to_compile)
    with refused(EngineError, "asked for frontend"):
        build(profiles=["edge"])


def test_other_graph_is_another_key(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_engines(copy, targets=["sm_89"], stages=["frontend"])
    content = json.loads((copy / MANIFEST).read_text())
    content["stages"]["frontend"]["graphs"]["trt"]["file"]["sha256"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(content))
    monkeypatch.setattr(building, "compile_plan", fail_to_compile)
    with refused(EngineError, "asked for frontend"):
        build_engines(copy, targets=["sm_89"], stages=["frontend"])


def fail_to_compile(_: object, stage: StageSpec, *__: object, **___: object) -> None:
    raise EngineError(f"asked for {stage.name}")


def test_failure_leaves_what_was_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_engines(copy, targets=["sm_89"], stages=["frontend"])
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.setattr(building, "compile_plan", fail_to_compile)
    with refused(EngineError, "asked for encoder"):
        build_engines(copy, targets=["sm_89"], stages=["frontend", "encoder"])
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after == before
    Bundle.open(copy, check="hashes")


@pytest.mark.parametrize("kind", ["file", "report"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "changed"])
def test_plan_that_is_lost_or_damaged_is_made_again(copy: Path, kind: str, damage: str) -> None:
    def build() -> Any:
        return build_engines(copy, targets=["sm_89"], stages=["frontend", "conditioning"])

    first, other = build()
    path = copy / getattr(first.entry, kind).path
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-8] + (b"12345678" if damage == "changed" else b""))
    if damage != "changed":
        with refused(BundleError, path.name, "musicrt build"):
            Bundle.open(copy)
    again, still = build()
    assert (again.seconds is not None, still.seconds) == (True, None)
    assert (again.entry.key, still.entry) == (first.entry.key, other.entry)
    assert Bundle.open(copy, check="hashes").manifest.engines["tensorrt-rtx-sm_89"].keys() == {"frontend", "conditioning"}


def test_what_others_write_into_the_manifest_meanwhile_is_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_another(family: Any, stage: StageSpec, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(building, "compile_plan", compile_plan)
        build_engines(copy, targets=["sm_120"], stages=["conditioning"])
        return compile_plan(family, stage, *arguments, **options)

    monkeypatch.setattr(building, "compile_plan", build_another)
    build_engines(copy, targets=["sm_89"], stages=["frontend", "conditioning"])
    engines = Bundle.open(copy, check="hashes").manifest.engines
    assert {folder: list(plans) for folder, plans in engines.items()} == {
        "tensorrt-rtx-sm_120": ["conditioning"],
        "tensorrt-rtx-sm_89": ["frontend", "conditioning"],
    }


@pytest.mark.parametrize("failing", ["_file_entry", "write_manifest"])
def test_files_that_can_not_be_noted_go_again(copy: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = {path for path in copy.rglob("*") if path.is_file()}

    def fail(*_: Any) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr(building, failing, fail)
    with refused(OutputError, "no space left"):
        build_engines(copy, targets=["sm_89"], stages=["frontend"])
    assert {path for path in copy.rglob("*") if path.is_file()} == before


def test_engine_of_no_known_stage_is_refused(copy: Path) -> None:
    build_engines(copy, targets=["sm_89"], stages=["frontend"])
    content = json.loads((copy / MANIFEST).read_text())
    plans = content["engines"]["tensorrt-rtx-sm_89"]

    def spoil(**changed: Any) -> None:
        (copy / MANIFEST).write_text(json.dumps({**content, "engines": {"tensorrt-rtx-sm_89": changed}}))
        with refused(BundleError, "tensorrt-rtx-sm_89", "no stage"):
            Bundle.open(copy)

    spoil(coder=plans["frontend"])
    spoil(encoder=plans["frontend"])
    spoil(frontend={**plans["frontend"], "profiles": []})


def test_several_buckets_are_profiles_of_one_engine(copy: Path) -> None:
    (one,) = build_engines(copy, targets=["sm_120"], stages=["frontend"], profiles=["latency", "throughput"])
    assert [profile.bucket for profile in one.entry.profiles] == ["latency", "throughput"]
    assert one.entry.profiles[1].axes["batch"] == (1, 8, 16)
    assert one.folder == "tensorrt-rtx-sm_120"


def test_what_can_not_be_built_is_refused(copy: Path) -> None:
    with refused(BackendError, "'tensorrt-lean'", "tensorrt, tensorrt-rtx"):
        build_engines(copy, "tensorrt-lean")
    with refused(InputError, "'sm_90'", "sm_89"):
        build_engines(copy, targets=["sm_90"])
    with refused(InputError, "'coder'", "encoder"):
        build_engines(copy, stages=["coder"])
    with refused(InputError, "fast", "latency"):
        build_engines(copy, profiles=["fast"])
    if cuda_obstacle():
        with refused(BackendError, "tensorrt can't build here", "builds on the machine"):
            build_engines(copy, "tensorrt")
        with refused(BackendError, "stripped", "--stripped"):
            build_engines(copy, stripped=True)
    content = json.loads((copy / MANIFEST).read_text())
    del content["stages"]["frontend"]["graphs"]["trt"]
    (copy / MANIFEST).write_text(json.dumps(content))
    with refused(BundleError, "'trt'", "'frontend'", "add-flavour"):
        build_engines(copy)


def test_damaged_plan_or_report_is_found(copy: Path) -> None:
    (one,) = build_engines(copy, targets=["sm_89"], stages=["frontend"])
    plan, report = copy / one.entry.file.path, copy / one.entry.report.path
    text = report.read_bytes()
    report.write_bytes(text[:-20] + b" " * 20)
    with refused(BundleError, report, "SHA-256"):
        Bundle.open(copy, check="hashes")
    with refused(BundleError, report, "build the engines again"):
        read_report(report)
    report.write_bytes(text)
    plan.unlink()
    with refused(BundleError, "lacks", one.entry.file.path):
        Bundle.open(copy)


def test_plan_itself_needs_a_gpu_to_be_read(copy: Path) -> None:
    (one,) = build_engines(copy, targets=["sm_89"], stages=["frontend"])
    reason = tensorrt_family.FAMILIES["tensorrt-rtx"].run_obstacle()
    if reason is None:
        pytest.skip("there is a GPU")
    with refused(EngineError, reason):
        read_engine(copy / one.entry.file.path, one.entry)
