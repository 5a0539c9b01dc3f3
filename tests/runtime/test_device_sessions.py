"""Sessions on arrays of a GPU: ONNX Runtime and torch by addresses (here those of the host), arrays of other packages, and streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.backends import onnxruntime as onnx_backend
from musicrt.runtime.backends import torch as torch_backend
from musicrt.runtime.backends.onnx_session import OnnxSession
from musicrt.runtime.backends.onnxruntime import OnnxCpu, OnnxCuda
from musicrt.runtime.backends.torch import TorchCuda, TorchDevice, TorchSession
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.select import select_backend
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from tests.conftest import refused
from tests.runtime.fake_gpu import FakeDevice, memory_of

BATCH = Axis("batch", 1, 1, 8)
X, Y = TensorSpec("x", "float32", (BATCH, 3)), TensorSpec("y", "float32", (BATCH, 3))
STAGE = StageSpec("small", "", (X,), (Y,), Tolerance(1e-5), states=(TensorSpec("count", "int64", (1,)),))


def upload(device: FakeDevice, array: Array) -> DeviceArray:
    memory = device.empty(array.shape, array.dtype)
    device.upload(array, memory)
    return memory


def test_sessions_of_the_host_refuse_arrays_on_a_gpu() -> None:
    session = FakeSession(STAGE)
    assert session.gpu is None
    with refused(BackendError, "small", "host memory", "`bind`"):
        session.bind_device({}, {})
    with refused(BackendError, "host memory"):
        session.new_states({"batch": 1})


def test_onnxruntime_works_on_addresses() -> None:
    """Several calls of a session, each bound to its own arrays, which are read and written where they lie."""
    pytest.importorskip("onnxruntime")
    device = FakeDevice(graphs=False)
    opened = OnnxCpu(threads=1).open_session(Bundle.open(EMBEDDED), "conditioning")
    session = OnnxSession(opened.stage, opened.session, device)
    assert session.gpu is device
    sigmas = [np.array([0.3, 2.0], np.float32), np.array([1.0, 80.0], np.float32)]
    inputs = [upload(device, sigma) for sigma in sigmas]
    results = [{t.name: device.empty(t.resolve({"steps": 2}), t.dtype) for t in session.outputs} for _ in sigmas]
    calls = [session.bind_device({"sigma": one}, result) for one, result in zip(inputs, results, strict=True)]
    device.calls.clear()
    for _ in range(2):
        for call in calls:
            call()
        for sigma, result in zip(sigmas, results, strict=True):
            for name, expected in opened.run({"sigma": sigma}).items():
                np.testing.assert_array_equal(memory_of(result[name]), expected)
        sigmas = [2 * sigma for sigma in sigmas]
        for sigma, one in zip(sigmas, inputs, strict=True):
            memory_of(one)[...] = sigma
    assert device.calls == []
    with refused(InputError, "sigma is float64"):
        session.bind_device({"sigma": device.empty((2,), np.float64)}, results[0])
    session.close()
    with refused(BackendError, "closed"):
        calls[0]()


@pytest.fixture
def torch_on_host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch, with tensors of host memory in the place of those on a GPU; gives the streams that were made current."""
    torch = pytest.importorskip("torch")
    streams: list[int] = []

    @contextlib.contextmanager
    def use_stream(stream: int) -> Iterator[None]:
        streams.append(stream)
        yield

    monkeypatch.setattr(torch_backend, "use_stream", use_stream)
    monkeypatch.setattr(torch_backend, "as_tensor", lambda array: torch.from_numpy(memory_of(array)))
    return streams


def test_torch_works_on_addresses(torch_on_host: list[int]) -> None:
    import torch

    class Doubles(torch.nn.Module):
        def forward(self, x: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            count += 1
            return 2 * x, count

    device = FakeDevice(stream=5)
    session = TorchSession(STAGE, Doubles(), gpu=device)
    x, y = upload(device, np.arange(6, dtype=np.float32).reshape(2, 3)), device.empty((2, 3), np.float32)
    states = session.new_states({"batch": 2})
    call = session.bind_device({"x": x, **states}, {"y": y})
    call()
    np.testing.assert_array_equal(memory_of(y), 2 * memory_of(x))
    memory_of(x)[...] = 7
    call()
    assert (memory_of(y) == 14).all()
    assert memory_of(states["count"]) == [2]
    assert torch_on_host == [5, 5]
    assert device.named("wait") == []
    outputs = session.run({"x": np.ones((1, 3), np.float32), "count": np.zeros(1, np.int64)})
    assert (outputs["y"] == 2).all()
    assert torch_on_host == [5, 5, 5]
    session.close()
    with refused(BackendError, "closed"):
        call()


class FakeGraph:
    """In the place of torch.cuda.CUDAGraph and torch.cuda.graph; `fails`: whether ending does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False

    def replay(self) -> None:
        self.calls.append("replay")

    @contextlib.contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        assert graph is self
        assert options == {"stream": ("stream", 5), "capture_error_mode": "thread_local"}
        self.calls.append("begin")
        yield
        self.calls.append("end")
        if self.fails:
            raise RuntimeError("CUDA error:\noperation failed due to a previous error")


@pytest.fixture
def torch_graph(monkeypatch: pytest.MonkeyPatch, torch_on_host: list[int]) -> FakeGraph:
    import torch

    del torch_on_host
    fake = FakeGraph()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: fake)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: ("stream", handle))
    return fake


class HalfFakeDevice(FakeDevice):
    """A fake one that records as the one of torch does."""

    record = TorchDevice.record


def test_torch_records_graphs_of_its_own(torch_graph: FakeGraph) -> None:
    work: list[int] = []
    graph = HalfFakeDevice(stream=5).capture(lambda: work.append(1))
    for _ in range(3):
        graph()
    assert torch_graph.calls == ["begin", "end", "replay", "replay"]
    assert len(work) == 2, "once by itself, once to be recorded"


@pytest.mark.parametrize("fails", [False, True])
def test_error_in_a_recording_of_torch_is_that_of_the_work(fails: bool, torch_graph: FakeGraph) -> None:
    torch_graph.fails = fails
    work: list[int] = []

    def refuse() -> None:
        work.append(1)
        if len(work) == 2:
            raise BackendError("small: torch failed: out of memory")

    with refused(BackendError, "out of memory"):
        HalfFakeDevice(stream=5).capture(refuse)()
    assert torch_graph.calls == ["begin", "end"]
    if fails:
        with refused(BackendError, "torch can't record", "a previous error"):
            HalfFakeDevice(stream=5).capture(lambda: None)()


# Streams of the caller's


def test_backends_of_the_host_take_no_stream() -> None:
    for name in ("onnxruntime-cpu", "torch-cpu"):
        pytest.importorskip(name.split("-")[0])
        with refused(BackendError, name, "takes no CUDA stream", "host"):
            select_backend(name, stream=77)
    with pytest.raises(BackendError, match="takes no CUDA stream"):
        select_backend(stream=77)


def test_stream_and_switch_reach_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (onnx_backend, torch_backend):
        monkeypatch.setattr(module, "device_obstacle", lambda: None)
    monkeypatch.setattr(onnx_backend, "Device", FakeDevice)
    monkeypatch.setattr(torch_backend, "TorchDevice", FakeDevice)
    onnx, torch = OnnxCuda(stream=123), TorchCuda(stream=123, graphs=False)
    assert onnx.gpu is onnx.gpu
    assert onnx.gpu is not None
    assert torch.gpu is not None
    assert onnx.gpu.stream == torch.gpu.stream == 123
    assert onnx.options["user_compute_stream"] == "123"
    assert not onnx.gpu.graphs, "what ONNX Runtime does can't be recorded"
    assert not torch.gpu.graphs
    assert TorchCuda().gpu is not None
    assert onnx.with_flavour("trt").stream == 123


def test_without_cuda_core_loops_are_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "cuda-core is not installed"
    for module in (onnx_backend, torch_backend):
        monkeypatch.setattr(module, "device_obstacle", lambda: missing)
    monkeypatch.setattr("musicrt.runtime.backend.device_obstacle", lambda: missing)
    for kind in (OnnxCuda, TorchCuda):
        assert kind().gpu is None
        with refused(BackendError, kind.name, "no CUDA stream", missing):
            kind(stream=5)
    assert "user_compute_stream" not in OnnxCuda().options
    pytest.importorskip("onnxruntime")
    assert missing in OnnxCuda().describe()
