"""The suite for a GPU, on a fake one: that it refuses machines without, what it compares, and how it tells."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.gpu.__main__ as suite
from benchmarks.gpu import cases, checks, measuring
from benchmarks.gpu.tables import render
from benchmarks.gpu.timing import Activity
from musicrt.runtime.errors import BackendError
from musicrt.runtime.measure import Measurement
from musicrt.runtime.model import load
from tests.benchmarks.here import call_here
from tests.conftest import refused
from tests.runtime.fake_gpu import FakeGpuSession
from tests.runtime.vidmuse_codecs import open_light
from tests.runtime.vidmuse_gpu import Gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """In the place of the real one, with clocks of the host; and choices of a few tokens."""
    device = Gpu()
    device.name, device.architecture = "a fake GPU", "sm_89"

    def time_on(_device: Gpu, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    monkeypatch.setattr(measuring, "Device", lambda: device)
    monkeypatch.setattr(measuring, "time_on", time_on)
    monkeypatch.setattr(measuring, "copy_speed", lambda _device: 2e12)
    monkeypatch.setattr(measuring, "trace", lambda _run: Activity(200, 0.5, 0.1))
    monkeypatch.setattr(checks, "_COLUMNS", 10)
    monkeypatch.setattr(checks, "_CARD", 256)
    monkeypatch.setattr(suite, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(suite, "device_obstacle", lambda: None)
    call_here(monkeypatch, suite)
    return device


def open_signals(gpu: Gpu, bundle: Path) -> Any:
    """A codec in ONNX Runtime, as if that ran on the GPU."""
    codec = load(bundle, backend="onnxruntime-cpu", threads=1)
    opened = codec.model._open_session
    codec.model._open_session = lambda stage: FakeGpuSession(opened(stage), gpu)
    return codec


def open_tokens(gpu: Gpu) -> Any:
    pipeline, sessions = open_light()
    pipeline.model._sessions["lm"] = FakeGpuSession(sessions["lm"], gpu)
    return pipeline


def test_machines_without_a_gpu_are_refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "gpu")]
    monkeypatch.setattr(suite, "cuda_obstacle", lambda: "no NVIDIA GPU")
    with refused(BackendError, "there is no GPU to check here: no NVIDIA GPU; run this on a machine with an NVIDIA GPU"):
        suite.main(arguments)
    monkeypatch.setattr(suite, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(suite, "device_obstacle", lambda: "cuda.core is not installed")
    with refused(BackendError, "cuda.core is not installed"):
        suite.main(arguments)
    assert not list(tmp_path.iterdir())


def test_only_backends_on_a_gpu_are_measured(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "gpu"), "--backends", "torch-cpu"])
    assert "invalid choice: 'torch-cpu'" in capsys.readouterr().err


def test_whole_run(gpu: Gpu, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_here(_bundle: str, *, backend: str, threads: int | None) -> Any:
        if backend != "onnxruntime-cuda":
            raise BackendError(f"{backend} can't run here: a test")
        assert threads == 1
        return open_signals(gpu, tiny_bundle)

    monkeypatch.setattr(measuring, "load", load_here)
    asked = ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "gpu"), "--threads", "1", "--seconds", "0.3", "--steps", "2"]
    asked += ["--repeats", "1"]
    suite.main(asked)
    content, text = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert not any(check["failed"] or check["note"] for check in content["device"]["checks"])
    assert {name for name, found in content["backends"].items() if "obstacle" in found} == {"tensorrt", "tensorrt-rtx", "torch-cuda"}
    found = content["backends"]["onnxruntime-cuda"]
    assert (found["stage"], found["steps"]) == ("denoiser", 2)
    assert [row["measurement"]["name"] for row in found["rows"]] == [cases.HOST, cases.CALLS, cases.GRAPH]
    assert all(row["check"]["error"] < 1e-5 for row in found["rows"])
    assert f"Checks: {len(content['device']['checks']) + 3} of" in text
    assert "torch-cuda did not run: torch-cuda can't run here: a test." in text
    assert f"for {found['weights'] / 1e6:.1f} MB of weights" in text
    with refused(BackendError, "torch-cuda did not run; see gpu.md"):
        suite.main([*asked, "--backends", "torch-cuda"])


def test_loop_over_tokens(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "load", lambda *_, **__: open_tokens(gpu))
    monkeypatch.setattr(measuring, "weights_mb", lambda *_: 100.0)
    found = measuring.measure_backend("bundle", "tensorrt", 1, 0.3, 1, 1)
    assert [row["measurement"]["name"] for row in found["rows"]] == [cases.HOST, cases.CALLS, cases.GRAPH, cases.LOOP]
    assert [row["check"]["error"] for row in found["rows"]] == [0.0] * 4
    assert (found["steps"], found["weights"]) == (18, 1e8)


def test_graphs_with_loops_may_be_missing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_work: object) -> Callable[[], None]:
        raise BackendError("the driver is of CUDA 12.3")

    monkeypatch.setattr(gpu, "record_loop", refuse)
    *_, last = measuring.time_ways(cases.open_case(open_tokens(gpu), 0.1, 1), "tensorrt", 1)
    assert (last["check"]["note"], last["check"]["failed"]) == ("the driver is of CUDA 12.3", False)
    found = [check for check in checks.check_kernels(gpu) if check.note]
    assert [(check.name, check.failed) for check in found] == [("choice in a graph with a loop", False)]


def test_inputs_of_a_step_are_those_of_the_stage(gpu: Gpu, tiny_bundle: Path) -> None:
    for codec in (open_signals(gpu, tiny_bundle), open_tokens(gpu)):
        case = cases.open_case(codec, 0.5, 2)
        assert all(np.isfinite(value).all() for value in case.session.run(case.feeds()).values())


def test_loops_on_the_host_are_refused(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as codec, refused(BackendError, "the loops of stage 'denoiser' run on the host here"):
        cases.open_case(codec, 0.5, 2)


def test_what_a_gpu_was_busy_with() -> None:
    assert Activity.of([]) == Activity(0, 0.0, 0.0)
    seen = Activity.of([(5.0, 6.0), (1.0, 2.0), (1.5, 3.0), (1.6, 1.7)])
    assert seen == Activity(4, 3.0, 2.0)


def test_what_failed_is_said() -> None:
    checked = [checks.Check("ddim", 1e-3, 0.0), checks.Check("loop", math.nan, 0.0, "an old driver"), checks.Check("flow", math.nan, 0.0)]
    device = {"gpu": "a GPU", "architecture": "sm_90", "copy": 2e12, "checks": [check.to_json() for check in checked]}
    row = {
        "measurement": Measurement("graph", (0.004, 0.002, 0.003)).to_json(),
        "check": checks.Check("tensorrt, graph", 0.0, 0.0).to_json(),
        "activity": {"launches": 60, "busy": 0.1, "gaps": 0.02},
    }
    alone = {"measurement": Measurement("eager", (math.nan,), note="out of memory").to_json(), "check": None, "activity": None}
    found = {"backend": "tensorrt (11)", "stage": "lm", "steps": 20, "weights": 1e9, "rows": [row, alone]}
    text = render(device, {"tensorrt": found, "torch-cuda": {"obstacle": "no torch"}})
    assert "Checks: 1 of 4 passed, 1 could not be run; failed: ddim, flow." in text
    assert "| ddim | 1.0e-03 | 0e+00 | failed |" in text
    assert "| loop | – | 0e+00 | an old driver |" in text
    assert "Floor: 0.500 ms for 1000.0 MB of weights." in text
    assert "| graph | 3.000 (2.000) | 6.00 | 3.0 | 1.000 |" in text
    assert "| eager | out of memory | – | – | – |" in text
    assert "torch-cuda did not run: no torch." in text
