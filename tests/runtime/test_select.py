"""Which backend runs, and why each other one does not."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from musicrt.runtime import driver, select
from musicrt.runtime.backend import Backend
from musicrt.runtime.backends import onnxruntime as onnxruntime_backend
from musicrt.runtime.backends import torch as torch_backend
from musicrt.runtime.backends.onnxruntime import OnnxCuda
from musicrt.runtime.backends.torch import TorchCuda
from musicrt.runtime.errors import BackendError
from musicrt.runtime.model import Model
from musicrt.runtime.select import BACKENDS, Choice, select_backend
from musicrt.runtime.session import Session
from tests.conftest import refused

ORDER = ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch-cuda", "onnxruntime-cpu", "openvino-cpu", "torch-cpu"]
ON_GPU = ORDER[:4]


def stub(kind: str, reasons: dict[str, str | None]) -> type[Backend]:
    """A backend that can run, or not, as the reasons say."""

    class Stub(Backend):
        name = kind
        device: ClassVar[Literal["cpu", "cuda"]] = "cuda" if kind in ON_GPU else "cpu"
        extra = "extra"

        @classmethod
        def obstacle(cls) -> str | None:
            return reasons[kind]

        def open_session(self, bundle: Any, stage: str) -> Session:
            raise NotImplementedError

        def describe(self) -> str:
            return f"{kind} with {self.threads} threads"

    return Stub


@pytest.fixture
def obstacles(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The reason against each backend; tests change it before they select."""
    reasons: dict[str, str | None] = dict.fromkeys(ORDER, None)
    monkeypatch.setattr(select, "BACKENDS", {name: stub(name, reasons) for name in ORDER})
    return reasons


def test_order_is_from_fast_to_slow() -> None:
    assert list(BACKENDS) == ORDER
    assert all(backend.name == name for name, backend in BACKENDS.items())


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_auto_takes_the_first_that_works_and_says_why_not_the_others(obstacles: dict[str, str | None], first: int) -> None:
    for name in ORDER[:first]:
        obstacles[name] = f"{name} is missing"
    backend, choice = select_backend("auto", threads=3)
    assert backend.name == choice.name == ORDER[first]
    assert choice.reasons == {name: f"{name} is missing" for name in ORDER[:first]}
    assert backend.threads == 3
    assert choice.precision == "float32"
    assert str(choice) == f"{ORDER[first]} (float32, {ORDER[first]} with 3 threads)"


def test_nothing_works_and_every_reason_is_told(obstacles: dict[str, str | None]) -> None:
    for name in ORDER:
        obstacles[name] = f"reason of {name}"
    with refused(BackendError, *(f"{name} can't run here: reason of {name}" for name in ORDER)):
        select_backend()


@pytest.mark.parametrize("name", ORDER)
def test_explicit_request_is_met_or_refused(obstacles: dict[str, str | None], name: str) -> None:
    backend, choice = select_backend(name)
    assert backend.name == choice.name == name
    assert choice.reasons == {}
    obstacles[name] = "it is too warm"
    with refused(BackendError, f"{name} can't run here: it is too warm; musicrt doctor lists what runs here"):
        select_backend(name)


@pytest.mark.parametrize(("device", "names"), [("cpu", ORDER[4:]), ("cuda", ON_GPU)])
def test_device_narrows_auto_down(obstacles: dict[str, str | None], device: Any, names: list[str]) -> None:
    assert select_backend(device=device)[1] == Choice(names[0], f"{names[0]} with None threads")
    for name in names:
        obstacles[name] = "it is too warm"
    with refused(BackendError, *(f"{name} can't run here" for name in names)):
        select_backend(device=device)


def test_gpu_backend_that_fails_its_trial_is_passed_over(obstacles: dict[str, str | None]) -> None:
    """By "auto" only: who asks for it by name gets its error when it is used."""
    assert set(obstacles.values()) == {None}
    tried: list[str] = []

    def probe(backend: Backend) -> None:
        tried.append(backend.name)
        raise BackendError(f"{backend.name} ran out of memory")

    _, choice = select_backend(probe=probe)
    assert choice.name == "onnxruntime-cpu"
    assert choice.reasons == {name: f"{name} ran out of memory" for name in ON_GPU}
    assert tried == ON_GPU
    assert select_backend("torch-cuda", probe=probe)[1].name == "torch-cuda"


def test_precision_narrows_auto_down_with_reasons(obstacles: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who offers it but can't run here says so, and who does not offer it says that, missing or not."""
    kinds = select.BACKENDS
    for name in ORDER[:2]:
        monkeypatch.setattr(kinds[name], "precisions", ("float16",))
    for name in ("onnxruntime-cuda", "torch-cpu"):
        monkeypatch.setattr(kinds[name], "precisions", ("float32", "int8"))
    obstacles["onnxruntime-cuda"] = "no GPU"
    backend, choice = select_backend(precision="int8")
    assert (choice.name, choice.precision, backend.precision, backend.flavour) == ("torch-cpu", "int8", "int8", "int8")
    assert choice.reasons == {
        **dict.fromkeys(ORDER[:2], "it computes in float16, not in int8"),
        "onnxruntime-cuda": "no GPU",
        "torch-cuda": "it computes in float32, not in int8",
        "onnxruntime-cpu": "it computes in float32, not in int8",
        "openvino-cpu": "it computes in float32, not in int8",
    }
    assert select_backend("tensorrt")[1].precision == "float16"
    assert select_backend("tensorrt", precision="float16")[0].flavour == "ort"
    with refused(BackendError, "torch-cuda can't run here in bfloat16: it computes in float32, not in bfloat16"):
        select_backend("torch-cuda", precision="bfloat16")
    with refused(BackendError, *(f"{name} can't run here in bfloat16" for name in ORDER)):
        select_backend(precision="bfloat16")


@pytest.mark.parametrize("precision", ["", "float64", "Float32", "bf16", 8])
def test_unknown_precision_is_refused_with_the_legal_ones(precision: Any) -> None:
    with refused(BackendError, repr(precision), "float32", "bfloat16", "float16", "int8"):
        select_backend(precision=precision)


@pytest.mark.parametrize("name", ["", "Auto", "tensorrt ", "onnxruntime", "torch-cpu "])
def test_unknown_name_is_refused_with_the_legal_ones(name: str) -> None:
    with refused(BackendError, repr(name), "auto", *ORDER):
        select_backend(name)


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, True, "2"])
def test_impossible_thread_count_is_refused(threads: Any) -> None:
    with refused(BackendError, f"{threads!r} threads"):
        select_backend(threads=threads)


@pytest.mark.parametrize("module", ["onnxruntime", "openvino", "torch"])
def test_missing_package_is_named_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    for place in (onnxruntime_backend, torch_backend):
        monkeypatch.setattr(place, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest))
    for name, backend in BACKENDS.items():
        if name.startswith(module):
            reason = backend.obstacle()
            assert reason is not None
            assert "is not installed" in reason
            assert f"musicrt[{backend.extra}]" in reason
            with refused(BackendError, name, reason):
                select_backend(name)
    assert not select_backend("auto")[1].name.startswith(module)


@pytest.mark.parametrize("module", ["onnxruntime", "openvino", "torch"])
def test_package_that_can_not_be_imported_is_no_backend(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    with refused(BackendError, f"{module}-cpu can't run here", "can't be imported"):
        select_backend(f"{module}-cpu")


def test_machine_without_a_driver_has_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is asked before any package that could use it is imported."""

    def load(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", load)
    driver.cuda_obstacle.cache_clear()
    try:
        for backend in (OnnxCuda, TorchCuda):
            reason = backend.obstacle()
            assert reason is not None
            assert "no NVIDIA driver" in reason or "is not installed" in reason
    finally:
        driver.cuda_obstacle.cache_clear()


@pytest.mark.parametrize(("status", "count", "expected"), [(100, 1, "CUDA error 100"), (0, 0, "no NVIDIA GPU"), (0, 2, None)])
def test_driver_answers_are_told(monkeypatch: pytest.MonkeyPatch, status: int, count: int, expected: str | None) -> None:
    class Library:
        def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name for it
            return status

        def cuDeviceGetCount(self, place: Any) -> int:  # noqa: N802
            place._obj.value = count
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    driver.cuda_obstacle.cache_clear()
    try:
        reason = driver.cuda_obstacle()
        assert reason is None if expected is None else reason is not None and expected in reason
    finally:
        driver.cuda_obstacle.cache_clear()


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu", "torch-cpu"])
def test_opened_model_tells_what_runs(tiny_bundle: Path, name: str) -> None:
    module = name.removesuffix("-cpu")
    package = pytest.importorskip(module)
    with Model.open(tiny_bundle, backend=name, threads=1) as model:
        assert isinstance(model.backend, Choice)
        assert model.backend.name == name
        assert f"{module} {package.__version__}".partition("-")[0] in model.backend.description
        assert model.device == "cpu"
