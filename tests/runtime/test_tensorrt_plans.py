"""Which plan of a bundle the backends for TensorRT run, and what they say where there is none; no GPU is needed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime import tensorrt_family
from musicrt.runtime.backends import tensorrt as backend_module
from musicrt.runtime.backends.tensorrt import Tensorrt, TensorrtRtx, TensorrtSession
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.cuda.engine import open_plan
from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError, BundleError, EngineError
from musicrt.runtime.manifest import FileEntry, PlanEntry, ProfileEntry
from musicrt.runtime.manifest_file import write_manifest
from musicrt.runtime.model import Model
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensorrt_family import FAMILIES
from musicrt.runtime.tensorrt_messages import messages_of
from tests.conftest import refused
from tests.runtime import fake_tensorrt as fake
from tests.runtime.fake_tensorrt import named

PROFILES = [ProfileEntry(bucket="latency", axes={"batch": (1, 1, 2), "length": (1, 4, 8)})]


@pytest.fixture(autouse=True)
def settings() -> Iterator[dict[str, Any]]:
    fake.calls.clear()
    fake.settings.clear()
    fake.settings["stage"] = StageSpec("small", "", (), (), Tolerance(1e-5))
    yield fake.settings
    fake.settings.clear()


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU, an RTX 4090, and a TensorRT."""
    monkeypatch.setattr(tensorrt_family, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(tensorrt_family, "_is_there", lambda _: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    monkeypatch.setattr(backend_module, "gpu_architecture", lambda: "sm_89")
    monkeypatch.setattr(backend_module, "Device", fake.FakeDevice)


def with_plan(bundle: Bundle, *, stages: int = 99, **changes: Any) -> Bundle:
    """The bundle with an entry for a plan of each stage; the files are not there."""
    file = FileEntry(path="manifest.json", bytes=1, sha256="0" * 64)
    values: dict[str, Any] = {
        "engine": "tensorrt-rtx",
        "version": fake.__version__,
        "targets": ["sm_86", "sm_89"],
        "stripped": False,
    } | changes
    plan = PlanEntry(
        file=file,
        report=file,
        key="0" * 64,
        precision="float16",
        flavour="trt",
        profiles=PROFILES,
        **values,
    )
    names = [stage.name for stage in bundle.spec.stages][:stages]
    bundle.manifest = bundle.manifest.model_copy(update={"engines": {"folder": dict.fromkeys(names, plan)}})
    return bundle


@pytest.mark.usefixtures("with_gpu")
def test_plan_that_fits_is_opened(tiny_bundle: Path, settings: dict[str, Any]) -> None:
    backend = TensorrtRtx()
    assert backend.obstacle() is None
    bundle = with_plan(Bundle.open(tiny_bundle))
    backend.check_bundle(bundle)
    settings["stage"] = bundle.spec.stage("encoder").in_flavour("trt")
    with backend.open_session(bundle, "encoder") as session:
        assert isinstance(session, TensorrtSession)
        assert session.stage.name == "encoder"
    assert named("deserialize") == [((tiny_bundle / "manifest.json").stat().st_size,)]
    assert backend.describe() == "tensorrt-rtx 1.7.1.116, a fake GPU, sm_89"


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 0}, ("has no tensorrt-rtx engine", "none at all", "musicrt build")),
        ({"stages": 2}, ("has no tensorrt-rtx engine", "conditioning")),
        ({"engine": "tensorrt"}, ("only for tensorrt;",)),
        ({"version": "1.6.0.1"}, ("of tensorrt-rtx 1.6.0.1", "installed is 1.7.1.116")),
        ({"targets": ["sm_86", "sm_120"]}, ("made for sm_120, sm_86", "this GPU is sm_89", "--target sm_89")),
    ],
)
def test_plan_that_does_not_fit_is_refused(tiny_bundle: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(EngineError, *words, "musicrt build"):
        TensorrtRtx().check_bundle(with_plan(Bundle.open(tiny_bundle), **changes))


def test_auto_passes_over_a_bundle_without_engines(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(TensorrtRtx, "obstacle", staticmethod(lambda: None))
    monkeypatch.setattr(backend_module, "gpu_architecture", lambda: "sm_89")
    monkeypatch.setattr(tensorrt_family.Family, "load", lambda _: fake)
    monkeypatch.setattr(backend_module, "Device", fake.FakeDevice)
    with Model.open(tiny_bundle) as model:
        assert "has no tensorrt-rtx engine" in model.backend.reasons["tensorrt-rtx"]


@pytest.mark.usefixtures("with_gpu")
def test_stripped_engine_gets_the_weights_of_its_graph(tmp_path: Path, settings: dict[str, Any]) -> None:
    graph = tmp_path / "a.trt.onnx"
    open_plan(fake, "small", Path(__file__), messages_of(fake), weights=graph)
    assert named("weights") == [(str(graph),)]
    assert ("refit",) in fake.calls
    settings["refuse"] = "weights"
    with refused(EngineError, "small", graph.name):
        open_plan(fake, "small", Path(__file__), messages_of(fake), weights=graph)


@pytest.mark.parametrize("kind", [Tensorrt, TensorrtRtx])
def test_driver_is_asked_before_anything_else(kind: Any, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setattr(tensorrt_family, "cuda_obstacle", lambda: "no NVIDIA driver")
    monkeypatch.setattr(tensorrt_family.Family, "load", lambda _: pytest.fail("TensorRT was imported"))
    assert kind.obstacle() == "no NVIDIA driver"
    with refused(BackendError, kind.name, "no NVIDIA driver"):
        kind().open_session(Bundle.open(tiny_bundle), "encoder")


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_or_other_version_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    monkeypatch.setattr(tensorrt_family, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert family.run_obstacle() == f"{name} is not installed (pip install 'musicrt[{name}]')"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, family.module, None)
    assert f"{name} can't be imported" in (family.run_obstacle() or "")
    monkeypatch.setitem(sys.modules, family.module, fake)
    for version, fits in ((family.oldest, True), (family.newest, False), ("0.9", False), (f"{family.oldest}.7.post1", True)):
        monkeypatch.setattr(fake, "__version__", version)
        assert (family.build_obstacle() is None) == fits


def test_names_of_the_cuda_packages_are_there() -> None:
    """All that `Device` calls; no driver is needed to ask."""
    core, driver = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.bindings.driver")
    for name in ("set_current", "create_stream", "allocate", "name"):
        assert hasattr(core.Device, name)
    assert hasattr(core.Stream, "handle")
    assert hasattr(core.Buffer, "handle")
    for name in ("CUstream", "cuMemsetD8Async", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "cuCtxSynchronize"):
        assert hasattr(driver, name)


@pytest.mark.gpu
def test_engines_run_and_agree_with_float32(half_bundles: Any, tmp_path: Path) -> None:
    """Builds here, runs here. Nobody has run it yet on a GPU."""
    import shutil

    from musicrt.engines.build import build_engines
    from musicrt.runtime.verify import verify_bundle

    if reason := cuda_obstacle() or FAMILIES["tensorrt-rtx"].run_obstacle():
        pytest.skip(reason)
    bundle = Path(shutil.copytree(half_bundles("music2latent"), tmp_path / "bundle"))
    build_engines(bundle)
    assert [check for check in verify_bundle(bundle, backend="tensorrt-rtx") if not check.ok] == []


def test_plan_whose_file_is_not_what_it_was_is_made_again_by_the_command_that_is_named(tmp_path: Path) -> None:
    path = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    bundle = with_plan(Bundle.open(path), stages=1)
    stage = bundle.spec.stages[0]
    axes = {axis.name: (axis.minimum, axis.optimum, axis.maximum) for axis in stage.axes}
    plan = bundle.manifest.engines["folder"][stage.name].model_copy(update={"profiles": [ProfileEntry(bucket="latency", axes=axes)]})
    write_manifest(path, bundle.manifest.model_copy(update={"engines": {"folder": {stage.name: plan}}}))
    with refused(BundleError, "the manifest says 1;", f"make the engines again with: musicrt build {path} --engine tensorrt-rtx"):
        Bundle.open(path)
