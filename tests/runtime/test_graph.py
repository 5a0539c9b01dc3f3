"""Graphs: what is run, recorded and replayed, when not, and that a failed recording ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Arena, Device, check_stream
from musicrt.runtime.cuda.graph import Graph, is_switched_on
from musicrt.runtime.errors import BackendError, InputError
from tests.conftest import refused
from tests.runtime.fake_gpu import FakeDevice


def count_up(device: FakeDevice) -> tuple[Graph, list[int]]:
    """A graph of one step, and how often it was made."""
    done: list[int] = []
    return device.capture(lambda: device.enqueue(("run", "count"), lambda: done.append(len(done)))), done


def kinds(device: FakeDevice) -> list[str]:
    return [call[0] for call in device.calls]


def test_every_call_counts() -> None:
    device = FakeDevice()
    graph, done = count_up(device)
    assert kinds(device) == []
    assert not graph.is_recorded
    for _ in range(3):
        graph()
    assert len(done) == 3
    assert graph.is_recorded
    assert kinds(device) == ["run", "record", "replay", "run", "replay", "run"]


def test_off_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted, expected in [("0", True, False), ("1", True, True), ("", True, True), ("1", False, False), (None, True, True)]:
        monkeypatch.delenv("MUSICRT_CUDA_GRAPHS", raising=False)
        if value is not None:
            monkeypatch.setenv("MUSICRT_CUDA_GRAPHS", value)
        assert is_switched_on(wanted) == expected
        device = FakeDevice(graphs=wanted)
        graph, done = count_up(device)
        graph()
        graph()
        assert len(done) == 2
        assert graph.is_recorded == expected
        assert ("record" in kinds(device)) == expected
    monkeypatch.setenv("MUSICRT_CUDA_GRAPHS", "off")
    with refused(BackendError, "MUSICRT_CUDA_GRAPHS=off", "0 (no CUDA graphs) or 1"):
        FakeDevice()


def test_scratch_memory_that_grew_is_not_replayed_into() -> None:
    device = FakeDevice()
    arena = Arena(device)
    first = arena.reserve(100)
    graph, done = count_up(device)
    graph()
    assert arena.reserve(50) == first
    assert graph.is_recorded
    arena.reserve(200)
    assert not graph.is_recorded
    graph()
    graph()
    assert len(done) == 3
    assert [kind for kind in kinds(device) if kind in ("run", "record", "replay")] == ["run", "record", "run", "record", "replay", "run"]


def test_arena_that_grows_in_the_first_call_is_known_to_the_graph() -> None:
    device = FakeDevice()
    arena = Arena(device)
    graph = device.capture(lambda: device.enqueue(("run", arena.reserve(100)), lambda: None))
    graph()
    assert graph.is_recorded


@pytest.mark.parametrize("call", ["wait", "upload", "download", "allocate"])
def test_what_is_recorded_may_not_wait_or_copy(call: str) -> None:
    device = FakeDevice()
    memory, host = device.empty((3,), np.float32), np.zeros(3, np.float32)
    work = {
        "wait": device.wait,
        "upload": lambda: device.upload(host, memory),
        "download": lambda: device.download(memory, host),
        "allocate": lambda: device.allocate(4),
    }[call]
    with refused(BackendError, f"{call} in a recording"):
        device.capture(work)()
    device.wait()  # it has ended


def test_other_shapes_are_refused() -> None:
    device = FakeDevice()
    memory = device.empty((2, 3), np.float32)
    for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64), np.zeros((1, 3), np.float32)):
        with refused(InputError, f"{wrong.dtype} {list(wrong.shape)}", "expected float32 [2, 3]", "capture anew"):
            device.upload(wrong, memory)
        with refused(InputError, "expected float32 [2, 3]"):
            device.download(memory, wrong)
    with refused(InputError, "C-contiguous"):
        device.upload(np.zeros((3, 2), np.float32).T, memory)


@pytest.mark.parametrize("stream", [0, 1, -5, True, "7", 2.0])
def test_streams_that_cannot_be_captured_are_refused(stream: Any) -> None:
    with refused(BackendError, repr(stream), "default one"):
        check_stream(stream)


class FakeDriver:
    """The part of the driver that records; `fails` names a call that it refuses."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.fails = fails

    def CUstream(self, handle: int) -> int:  # noqa: N802 - the driver's name
        return handle

    def __getattr__(self, name: str) -> Any:
        def call(*_arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            return (901, None) if name == self.fails else (0, f"result of {name}")

        return call


def real_device(driver: FakeDriver) -> Device:
    """The real class, but for what opens it."""
    device = Device.__new__(Device)
    device.graphs, device.generation = True, 0
    device._driver, device.core_stream = driver, SimpleNamespace(handle=77)
    return device


def test_driver_is_called_in_its_order() -> None:
    driver = FakeDriver()
    graph = real_device(driver).capture(lambda: driver.calls.append("work"))
    for _ in range(3):
        graph()
    recording = ["cuStreamBeginCapture", "work", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    assert driver.calls == ["work", *recording, "cuGraphLaunch", "cuGraphLaunch"]
    driver.calls.clear()
    del graph
    assert driver.calls == ["cuGraphExecDestroy"]


def test_refused_call_in_a_recording_ends_it() -> None:
    """The error is that of the work, and the graph is usable after that."""
    driver = FakeDriver()
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise BackendError("small: TensorRT does not run")

    graph = real_device(driver).capture(work)
    with refused(BackendError, "TensorRT does not run"):
        graph()
    assert driver.calls == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]
    assert not graph.is_recorded
    graph()
    assert graph.is_recorded


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"])
def test_refusals_of_the_driver_are_errors(call: str) -> None:
    graph = real_device(FakeDriver(call)).capture(lambda: None)
    remedy = "set MUSICRT_CUDA_GRAPHS=0" if "Capture" in call else "load again"
    with refused(BackendError, "CUDA failed: 901", remedy):
        for _ in range(2):
            graph()


def test_names_of_the_driver_are_there() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    names = ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuGraphDestroy", "cuGraphExecDestroy"]
    for name in names:
        assert hasattr(driver, name)
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    core = pytest.importorskip("cuda.core")
    assert hasattr(core.Stream, "from_handle")
    assert hasattr(core.Device, "arch")


def test_rows_of_an_array() -> None:
    array = FakeDevice().empty((4, 2, 3), np.float16)
    row = array.row(2)
    assert row == DeviceArray(array.address + 24, (2, 3), np.dtype(np.float16), array)
    assert row.owner is array
