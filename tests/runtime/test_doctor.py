"""What `musicrt doctor` says of a machine: one schema, also where things are missing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import musicrt
from musicrt.runtime import driver, processor
from musicrt.runtime.doctor import Report, examine
from musicrt.runtime.errors import InputError
from musicrt.runtime.limits import DEFAULTS
from musicrt.runtime.select import BACKENDS
from tests.conftest import refused


@pytest.fixture
def fresh_driver() -> Iterator[None]:
    driver.cuda_obstacle.cache_clear()
    yield
    driver.cuda_obstacle.cache_clear()


def test_report_survives_json_and_has_no_other_fields() -> None:
    report = examine()
    assert Report.model_validate_json(report.model_dump_json()) == report
    content = json.loads(report.model_dump_json())
    assert content.keys() == {
        *("format", "version", "python", "machine", "backends", "auto", "engines", "packages", "extras", "limits", "environment")
    }
    assert content["format"] == "musicrt-doctor 1"
    assert content["machine"].keys() == {"system", "cpu", "flags", "cores", "memory_gb", "cuda", "gpus", "no_gpu"}
    assert content["backends"].keys() == BACKENDS.keys()
    assert content["backends"]["onnxruntime-cpu"].keys() == {"device", "obstacle", "precisions", "refused"}
    assert report.machine.cores >= 1


def test_backends_say_what_they_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("musicrt.runtime.backend.bfloat16_obstacle", lambda: "this CPU is old")
    report = examine()
    assert report.backends["torch-cpu"].precisions == ["float32"]
    assert report.backends["torch-cpu"].refused == {"bfloat16": "this CPU is old"}
    first = next(name for name, kind in BACKENDS.items() if kind.obstacle() is None)
    assert report.auto == first


def test_packages_and_extras_are_those_of_our_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy>=2.0",
        'onnxruntime>=1.20; extra == "cpu"',
        'no-such-package[more]<3,>=2; extra == "odd"',
        'musicrt[cpu,odd]; extra == "both"',
        "pydantic (>=2.7) ; extra == 'old'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    report = examine()
    assert report.extras == {"cpu": [], "odd": ["no-such-package"], "both": ["no-such-package"], "old": []}
    assert report.packages == {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "pydantic")}

    def fail(_name: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", fail)
    assert examine().extras == {}


def test_limits_and_variables_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine().limits == DEFAULTS
    monkeypatch.setenv("MUSICRT_LIMITS", "audio_seconds=600")
    report = examine()
    assert report.limits == {**DEFAULTS, "audio_seconds": 600}
    assert report.environment["MUSICRT_LIMITS"] == "audio_seconds=600"
    assert all(name.startswith("MUSICRT_") for name in report.environment)
    monkeypatch.setenv("MUSICRT_LIMITS", "audio=1")
    with refused(InputError, "MUSICRT_LIMITS", "audio_seconds"):
        examine()


def test_flags_are_those_that_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", file)
    assert processor.known_flags() == []
    file.write_text("processor : 0\nflags\t\t: fpu avx512_vnni sse avx2\n")
    assert processor.known_flags() == ["avx2", "avx512_vnni"]


@pytest.mark.usefixtures("fresh_driver")
def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """Two GPUs, of which the driver knows nothing but the name of the second."""

        def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's names
            return 0

        def cuDriverGetVersion(self, place: Any) -> int:  # noqa: N802
            place._obj.value = 12040
            return 0

        def cuDeviceGetCount(self, place: Any) -> int:  # noqa: N802
            place._obj.value = 2
            return 0

        def cuDeviceGet(self, place: Any, index: int) -> int:  # noqa: N802
            place._obj.value = index
            return 0

        def cuDeviceGetAttribute(self, place: Any, number: int, device: Any) -> int:  # noqa: N802
            place._obj.value = {75: 8, 76: 9}[number]
            return int(device.value)

        def cuDeviceGetName(self, place: Any, size: int, device: Any) -> int:  # noqa: N802
            assert size == len(place)
            place.value = f"GPU {device.value}".encode()
            return 0

        def cuDeviceTotalMem_v2(self, place: Any, _device: Any) -> int:  # noqa: N802
            place._obj.value = 24_000_000_000
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    assert driver.list_gpus() == [("GPU 0", "sm_89", 24.0), ("GPU 1", "unknown", 24.0)]
    assert driver.driver_version() == "12.4"


@pytest.mark.usefixtures("fresh_driver")
def test_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert driver.list_gpus() == []
    assert driver.driver_version() is None


def test_version_is_ours() -> None:
    assert examine().version == musicrt.__version__
