"""Sessions on arrays of a GPU: ONNX Runtime and torch by addresses (here those of the host), arrays of other packages, and streams."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.backends import onnxruntime as onnx_backend
from musicrt.runtime.backends import torch as torch_backend
from musicrt.runtime.backends.onnxruntime import OnnxCpu, OnnxCuda, OnnxSession
from musicrt.runtime.backends.torch import TorchCuda, TorchDevice, TorchSession
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.select import select_backend
from musicrt.runtime.session import Array, FakeSession
from musicrt.runtime.spec import Axis, StageSpec, TensorSpec, Tolerance
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
    monkeypatch.setattr("musicrt.runtime.session.device_obstacle", lambda: missing)
    for kind in (OnnxCuda, TorchCuda):
        assert kind().gpu is None
        with refused(BackendError, kind.name, "no CUDA stream", missing):
            kind(stream=5)
    assert "user_compute_stream" not in OnnxCuda().options
    pytest.importorskip("onnxruntime")
    assert missing in OnnxCuda().describe()


# Arrays of other packages


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("device", "device_id", "ndim")),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("shape", "strides")),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Exporter:
    """Gives a NumPy array by DLPack, as if it were on a GPU."""

    def __init__(self, array: Array, device: int = 2) -> None:
        self._array, self._device = array, device
        counts = ctypes.c_int64 * array.ndim
        shape, strides = counts(*array.shape), counts(*(stride // array.itemsize for stride in array.strides))
        code, bits = {"f": 2, "i": 0}[array.dtype.kind], 8 * array.itemsize
        self._tensor = _Tensor(array.ctypes.data, device, 0, array.ndim, code, bits, 1, shape, strides, 0, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0

    def __dlpack__(self, *, stream: int | None = None, **_options: Any) -> Any:
        assert stream == -1, "nothing is waited for"
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self._tensor), b"dltensor", None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_arrays_are_taken_by_dlpack_without_a_copy(dtype: str) -> None:
    pytest.importorskip("cuda.core")
    array = np.arange(6).astype(dtype).reshape(2, 3)
    taken = DeviceArray.of(Exporter(array))
    assert (taken.address, taken.shape, taken.dtype) == (array.ctypes.data, (2, 3), array.dtype)
    np.testing.assert_array_equal(memory_of(taken), array)
    with refused(BackendError, "C-contiguous"):
        DeviceArray.of(Exporter(array.T))
    assert DeviceArray.of(Exporter(array[:1].T[:1])).shape == (1, 1)  # of axes of one item strides do not matter


def test_arrays_of_the_host_are_refused() -> None:
    for array in (np.zeros(3), [1.0], Exporter(np.zeros(3), device=1)):
        with refused(BackendError, type(array).__name__, "on the GPU", "DLPack"):
            DeviceArray.of(array)


def test_strides_of_contiguous_arrays_are_taken() -> None:
    class Foreign:
        __cuda_array_interface__ = {"shape": (2, 1, 3), "typestr": "<f4", "data": (64, False), "version": 3, "strides": (12, 400, 4)}  # noqa: RUF012

    assert DeviceArray.of(Foreign()).shape == (2, 1, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("package", ["torch", "cupy", "numba.cuda", "pycuda"])
def test_arrays_of_other_packages_share_memory(package: str) -> None:
    """Both ways, in the primary context. Nobody has run it yet on a GPU."""
    if reason := cuda_obstacle():
        pytest.skip(reason)
    module = pytest.importorskip(package)
    from musicrt.runtime.cuda.device import Device

    device = Device()
    mine, expected = device.empty((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    device.upload(expected, mine)
    device.wait()
    result = np.empty((2, 3), np.float32)
    if package == "pycuda":
        driver = pytest.importorskip("pycuda.driver")
        driver.init()  # never pycuda.autoinit, which makes a context of its own
        context = driver.Device(0).retain_primary_context()
        context.push()
        try:
            theirs = pytest.importorskip("pycuda.gpuarray").to_gpu(2 * expected)
            driver.memcpy_dtoh(result, mine.address)
            np.testing.assert_array_equal(result, expected)
            device.download(DeviceArray.of(theirs), result)
            device.wait()
            del theirs
        finally:
            context.pop()
        np.testing.assert_array_equal(result, 2 * expected)
        return
    if package == "torch":
        for taken in (module.as_tensor(mine, device="cuda"), module.from_dlpack(mine)):
            assert taken.data_ptr() == mine.address
            np.testing.assert_array_equal(taken.cpu().numpy(), expected)
        theirs = 2 * taken
        module.cuda.synchronize()
    elif package == "cupy":
        for taken in (module.asarray(mine), module.from_dlpack(mine)):
            assert taken.data.ptr == mine.address
            np.testing.assert_array_equal(taken.get(), expected)
        theirs = 2 * taken
        module.cuda.Device().synchronize()
    else:
        np.testing.assert_array_equal(module.as_cuda_array(mine).copy_to_host(), expected)
        theirs = module.to_device(2 * expected)
    device.download(DeviceArray.of(theirs), result)
    device.wait()
    np.testing.assert_array_equal(result, 2 * expected)
