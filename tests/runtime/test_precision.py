"""What networks are computed in: asked for by name, met or refused, and told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime import backend as backend_module
from musicrt.runtime import processor
from musicrt.runtime.bench import suite
from musicrt.runtime.bench.settings import Settings
from musicrt.runtime.bench.suite import bench_bundle
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.manifest_file import write_manifest
from musicrt.runtime.model import Model
from musicrt.runtime.precision import INT8
from musicrt.runtime.registry import system_names
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.verify import verify_bundle
from tests.conftest import ForSystem, refused

ON_CPU = [name for name, kind in BACKENDS.items() if kind.device == "cpu" and "int8" in kind.precisions and kind.obstacle() is None]


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a flavour `int8` of which no stage is lowered: each has its float32 graph under that name as well."""
    path = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    manifest = Bundle.open(path).manifest
    stages = {
        name: stage.model_copy(update={"graphs": {**stage.graphs, INT8: stage.graphs["ort"]}}) for name, stage in manifest.stages.items()
    }
    write_manifest(path, manifest.model_copy(update={"stages": stages}))
    return path


IN_BFLOAT16 = [name for name, kind in BACKENDS.items() if kind.device == "cpu" and "bfloat16" in kind.precisions]


@pytest.mark.parametrize("system", system_names())
@pytest.mark.parametrize("backend", IN_BFLOAT16)
def test_bfloat16_is_within_its_bounds(backend: str, system: str, tiny_bundles: ForSystem) -> None:
    """What may be lowered is, and is not far off; the rest is as near as in float32, whole numbers above all."""
    pytest.importorskip(backend.removesuffix("-cpu"))
    if reason := BACKENDS[backend].precision_obstacle("bfloat16"):
        pytest.skip(reason)
    checks = {check.stage: check for check in verify_bundle(tiny_bundles(system), backend=backend, threads=1, precision="bfloat16")}
    lowered = []
    for stage in Bundle.open(tiny_bundles(system)).spec.stages:
        check = checks[stage.name]
        assert check.ok, check
        assert check.tolerance == (8 * stage.half.tolerance if stage.half and not stage.states else stage.tolerance.rel_l2)
        lowered.append(check.error > 1e-3)
    assert any(lowered)


@pytest.mark.parametrize("backend", IN_BFLOAT16)
def test_cpu_without_bfloat16_refuses_it(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"))
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(backend_module, "bfloat16_obstacle", processor.bfloat16_obstacle.__wrapped__)
    answers = {
        "flags\t: fpu avx512f": "no instructions",
        "": "no instructions",
        "flags\t: fpu amx_bf16": None,
        "Features : asimd bf16": None,
    }
    for content, words in answers.items():
        cpuinfo.write_text(f"processor\t: 0\n{content}\n")
        reason = BACKENDS[backend].precision_obstacle("bfloat16")
        assert reason is None if words is None else reason is not None and words in reason
    cpuinfo.unlink()
    with refused(BackendError, f"{backend} can't run here in bfloat16", "it can't be seen"):
        BACKENDS[backend](precision="bfloat16")
    assert BACKENDS[backend]().precision == "float32"


def test_bundle_tells_its_flavours(int8_bundle: Path, tiny_bundle: Path) -> None:
    assert set(Bundle.open(int8_bundle).flavours) >= {"ort", "int8"}
    assert "int8" not in Bundle.open(tiny_bundle).flavours


@pytest.mark.parametrize("backend", [*ON_CPU, "auto"])
def test_int8_is_refused_with_the_command_that_makes_it(backend: str, tiny_bundle: Path) -> None:
    if not ON_CPU:
        pytest.skip("no backend that runs int8")
    with refused(BackendError, tiny_bundle, "'int8'", f"musicrt calibrate {tiny_bundle} --target cpu-int8"):
        musicrt.load(tiny_bundle, backend=backend, precision="int8")
    with refused(BackendError, "'int8'", "musicrt calibrate"):
        verify_bundle(tiny_bundle, backend=backend, precision="int8")


@pytest.mark.parametrize("backend", [*ON_CPU, "auto"])
def test_int8_runs_the_flavour_of_that_name(backend: str, int8_bundle: Path) -> None:
    if not ON_CPU:
        pytest.skip("no backend that runs int8")
    with Model.open(int8_bundle, backend=backend, threads=1, precision="int8") as model:
        assert model.backend.precision == "int8"
        assert model.backend.name in ON_CPU
        assert "int8" in str(model.backend)
        x = {"sigma": np.ones(2, np.float32)}
        assert np.isfinite(model.session("conditioning").run(x)["embedding"]).all()


@pytest.mark.parametrize("backend", ON_CPU)
def test_verify_says_what_was_computed_in(backend: str, int8_bundle: Path) -> None:
    for precision in (None, "int8"):
        checks = verify_bundle(int8_bundle, backend=backend, threads=1, precision=precision)
        assert {check.precision for check in checks} == {precision or "float32"}
        assert all(check.ok for check in checks)


def test_bench_measures_precisions_side_by_side(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(suite, "run_peaks", lambda *_: {"float32": 1.0, "copy": 1.0, "read": 1.0})
    settings = Settings(0.1, 1, threads=1, backends=["onnxruntime-cpu"], precisions=["float32", "int8", "bfloat16"])
    report = bench_bundle(int8_bundle, settings)
    assert [row.precision for row in report.rows] == ["float32"] * (len(report.rows) // 2) + ["int8"] * (len(report.rows) // 2)
    assert report.skipped == {"onnxruntime-cpu in bfloat16": "it computes in float32 or int8, not in bfloat16"}
    assert "| onnxruntime-cpu | int8 | decode, 1 step |" in report.to_markdown()


def test_bench_refuses_what_no_backend_offers(tiny_bundle: Path) -> None:
    with refused(BackendError, "onnxruntime-cpu can't run here in bfloat16"):
        bench_bundle(tiny_bundle, Settings(backends=["onnxruntime-cpu"], precisions=["bfloat16"]))
    with refused(BackendError, "torch-cpu can't run here in int8", "onnxruntime-cpu can't run here in int8", "musicrt calibrate"):
        bench_bundle(tiny_bundle, Settings(precisions=["int8"]))
