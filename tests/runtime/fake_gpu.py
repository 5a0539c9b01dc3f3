"""A GPU in host memory: what a device and its sessions do, on real addresses, with a record of all calls in their order."""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device, check_copy
from musicrt.runtime.cuda.graph import is_switched_on
from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Array, Session
from tests.runtime.host_kernels import HostKernels

Call = tuple[Any, ...]
_ALIGNMENT = 256


class FakeDevice(Device):
    """`calls`: what was asked of it, in order; what is enqueued in a recording is not run, and notes nothing, before it is replayed.

    Its names are allocate, clear, upload, download, wait, record, replay, and those that `enqueue` is given: run (of a session), launch.
    """

    name = "a fake GPU"
    architecture = "sm_89"

    def __init__(self, stream: int | None = None, *, graphs: bool = True) -> None:
        self.graphs, self.generation, self.lock = is_switched_on(graphs), 0, threading.RLock()
        self.calls: list[Call] = []
        self.held = 0  # bytes that are allocated
        self._stream = 77 if stream is None else stream
        self._recording: list[tuple[Call, Callable[[], None]]] | None = None

    @property
    def stream(self) -> int:
        return self._stream

    @functools.cached_property
    def kernels(self) -> HostKernels:
        """Those of the package, compiled for the host."""
        return HostKernels(lambda name, work: self.enqueue(("launch", name), work))

    def named(self, kind: str) -> list[Call]:
        """What follows the name in all calls of one."""
        return [call[1:] for call in self.calls if call[0] == kind]

    def enqueue(self, call: Call, work: Callable[[], None]) -> None:
        """Do what the stream of a real one would do, now or when the recording is replayed."""
        if self._recording is not None:
            self._recording.append((call, work))
        else:
            self.calls.append(call)
            work()

    def make_current(self) -> None:
        return

    def allocate(self, size: int) -> Any:
        self._refuse_in_recording("allocate")
        self.calls.append(("allocate", size))
        buffer = _Buffer(size)
        self.held += size
        weakref.finalize(buffer, self._let_go, size)
        return buffer

    def _let_go(self, size: int) -> None:
        self.held -= size

    def clear(self, array: DeviceArray) -> None:
        self.enqueue(("clear", array.nbytes), lambda: memory_of(array).fill(0))

    def upload(self, array: Array, to: DeviceArray) -> None:
        self._refuse_in_recording("upload")
        check_copy(array, to)
        self.calls.append(("upload", array.nbytes))
        memory_of(to)[...] = array

    def download(self, array: DeviceArray, to: Array) -> None:
        self._refuse_in_recording("download")
        check_copy(to, array)
        self.calls.append(("download", array.nbytes))
        to[...] = memory_of(array)

    def wait(self) -> None:
        self._refuse_in_recording("wait")
        self.calls.append(("wait",))

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self._recording is None, "a recording in a recording"
        self.calls.append(("record",))
        recording: list[tuple[Call, Callable[[], None]]] = []
        self._recording = recording
        try:
            work()
        finally:
            self._recording = None

        def replay() -> None:
            self.calls.append(("replay",))
            for call, step in recording:
                self.enqueue(call, step)

        return replay

    def _refuse_in_recording(self, call: str) -> None:
        if self._recording is not None:
            raise BackendError(f"CUDA failed: {call} in a recording")


class FakeGpuSession(Session):
    """A session of the host (`FakeSession`, or a real one) as if it ran on a GPU."""

    def __init__(self, inner: Session, device: FakeDevice) -> None:
        super().__init__(inner.stage)
        self._inner, self._device = inner, device

    @property
    def gpu(self) -> FakeDevice:
        return self._device

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._inner.limits

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        return self._inner.run(feeds, names)

    def _bind_device(self, arrays: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Callable[[], None]:
        del sizes
        assert [name for name, array in arrays.items() if array.address % _ALIGNMENT] == [], "TensorRT takes no such address"
        feeds = {tensor.name: memory_of(arrays[tensor.name]) for tensor in self.stage.feeds}
        results = {tensor.name: memory_of(arrays[tensor.name]) for tensor in self.outputs}
        call = self._inner.bind(feeds, results)
        keep = (call, dict(arrays))
        return lambda: self._device.enqueue(("run", self.stage.name), keep[0])

    def _close(self) -> None:
        self._inner.close()


class _Buffer:
    """Memory that is full of ones, which are NaN as floats: what nobody wrote shows."""

    def __init__(self, size: int) -> None:
        self._memory = np.full(max(size, 1) + _ALIGNMENT, 0xFF, np.uint8)
        self.handle = -(-self._memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT


def memory_of(array: DeviceArray) -> Array:
    """The array at an address, as NumPy sees it; the same memory."""
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
    return np.ndarray(array.shape, array.dtype, buffer=memoryview(raw).cast("B"))
