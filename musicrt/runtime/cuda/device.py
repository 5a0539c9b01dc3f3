"""A GPU, as far as a backend needs it: memory, one stream, copies. Made of NVIDIA's cuda-core; the driver has to be there."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.graph import SWITCH, Graph, is_switched_on
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.session import Array

if TYPE_CHECKING:
    from musicrt.runtime.cuda.kernels import Kernels

_UNRECORDED = f"what is run can't be recorded as a CUDA graph: set {SWITCH}=0, or load with graphs=False"
_LEGACY = (0, 1)  # handles of the default stream, which can't be captured


class Device:
    """The first GPU and one stream, on which all its work is done in order. One for all stages of a pipeline.

    `graphs`: whether `capture` records; `generation`: how often memory that graphs know by its address has been moved.
    """

    def __init__(self, stream: int | None = None, *, graphs: bool = True) -> None:
        """stream: the handle of a stream of the caller's, who keeps it alive; None: one of its own. Never the default one, which could
        not be captured. graphs: False, or MUSICRT_CUDA_GRAPHS=0 in the environment, to run all work call by call.

        Raises BackendError where CUDA can't be started, or for a stream that is no such handle.
        """
        import cuda.core
        from cuda.bindings import driver

        self.graphs, self.generation, self.lock = is_switched_on(graphs), 0, threading.RLock()
        self._driver = driver
        self._device = cuda.core.Device(0)
        self._device.set_current()
        self.core_stream: Any = self._device.create_stream() if stream is None else cuda.core.Stream.from_handle(check_stream(stream))

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def architecture(self) -> str:
        """Such as "sm_89"."""
        return f"sm_{self._device.arch}"

    @property
    def stream(self) -> int:
        """The handle of the stream; `core_stream` is that of cuda-core."""
        return int(self.core_stream.handle)

    @functools.cached_property
    def kernels(self) -> Kernels:
        """The kernels of this package, compiled for this GPU when they are first used. Raises BackendError."""
        from musicrt.runtime.cuda.kernels import Kernels

        return Kernels(self)

    def make_current(self) -> None:
        """For the calling thread."""
        self._device.set_current()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Of the calling thread; others wait. Sessions share a stream, scratch memory and contexts, and a recording takes in all that is
        enqueued meanwhile.
        """
        with self.lock:
            self.make_current()
            yield

    def allocate(self, size: int) -> Any:
        """So many bytes, freed behind the work on the stream when nobody holds them any more. `handle` is the address."""
        return self._device.allocate(max(size, 1), stream=self.core_stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array of undefined content."""
        kind = np.dtype(dtype)
        buffer = self.allocate(math.prod(shape) * kind.itemsize)
        return DeviceArray(int(buffer.handle), shape, kind, buffer)

    def clear(self, array: DeviceArray) -> None:
        """Fill with zeros."""
        self._check(self._driver.cuMemsetD8Async(array.address, 0, array.nbytes, self._driver.CUstream(self.stream)))

    def upload(self, array: Array, to: DeviceArray) -> None:
        """Copy a C-contiguous array; it may be changed when this returns, if it is no page-locked memory.

        Raises InputError unless it has the shape and dtype of `to`: what is captured in a graph never changes them.
        """
        check_copy(array, to)
        self._check(self._driver.cuMemcpyHtoDAsync(to.address, array.ctypes.data, array.nbytes, self._driver.CUstream(self.stream)))

    def download(self, array: DeviceArray, to: Array) -> None:
        """Copy into a C-contiguous array of its shape and dtype (else InputError); it is there after `wait`."""
        check_copy(to, array)
        self._check(self._driver.cuMemcpyDtoHAsync(to.ctypes.data, array.address, array.nbytes, self._driver.CUstream(self.stream)))

    def wait(self) -> None:
        """Until all work on the stream is done. Errors of that work show here, as BackendError."""
        self._check(self._driver.cuStreamSynchronize(self._driver.CUstream(self.stream)))

    def capture(self, work: Callable[[], None]) -> Graph:
        """A call that does the work, and from its second time on replays it as one graph, where there are graphs: see `Graph`."""
        return Graph(self, work)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what the work enqueues, without running it: a call that runs it. Raises what the work raises, BackendError."""
        stream, mode = self._driver.CUstream(self.stream), self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._check(self._driver.cuStreamBeginCapture(stream, mode), _UNRECORDED)
        done = False
        try:
            work()
            done = True
        finally:  # a capture that is not ended would refuse all that comes after
            result = self._driver.cuStreamEndCapture(stream)
            if not done and int(result[0]) == 0:
                self._driver.cuGraphDestroy(result[1])
        self._check(result, _UNRECORDED)
        return _Recorded(self._driver, self._check, result[1], stream)

    def record_loop(self, work: Callable[[int], None]) -> Callable[[], None]:
        """Record the body of a loop on the GPU, see `musicrt.runtime.cuda.repetition`. Raises what the work raises, BackendError."""
        from musicrt.runtime.cuda.repetition import record_loop

        return record_loop(self.core_stream, work)

    def _check(self, result: tuple[Any, ...], remedy: str = "look for other programs on the GPU, then load again") -> None:
        if int(result[0]) != 0:
            raise BackendError(f"CUDA failed: {getattr(result[0], 'name', result[0])}; {remedy}")


class _Recorded:
    """A graph of the driver, made ready to be launched on a stream."""

    def __init__(self, driver: Any, check: Callable[[tuple[Any, ...]], None], graph: Any, stream: Any) -> None:
        self._driver, self._check, self._stream = driver, check, stream
        result = driver.cuGraphInstantiate(graph, 0)
        driver.cuGraphDestroy(graph)
        check(result)
        self._graph = result[1]

    def __call__(self) -> None:
        self._check(self._driver.cuGraphLaunch(self._graph, self._stream))

    def __del__(self) -> None:
        if hasattr(self, "_graph"):
            self._driver.cuGraphExecDestroy(self._graph)  # while it runs, the driver waits with it


class Arena:
    """Scratch memory that the stages of a pipeline share: they run one after the other on one stream, and each needs it for a call only.

    Graphs that were captured before it had to grow are recorded again: it counts in the `generation` of the device.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Any = None
        self.size = 0

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes, another one than before if the arena had to grow."""
        if self._buffer is None or size > self.size:
            if self._buffer is not None:
                self._device.wait()
            self._buffer, self.size = self._device.allocate(size), size
            self._device.generation += 1
        return int(self._buffer.handle)


def check_stream(stream: object) -> int:
    """The handle of a stream that can be captured. Raises BackendError."""
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0 or stream in _LEGACY:
        raise BackendError(
            f"got the stream {stream!r}, expected the handle of a stream that is not the default one, which can't be captured; "
            "make one (torch.cuda.Stream().cuda_stream, say)"
        )
    return stream


def check_copy(array: Array, memory: DeviceArray) -> None:
    """Raises InputError unless a C-contiguous array on the host has the shape and dtype of memory on the GPU."""
    if array.dtype != memory.dtype or array.shape != memory.shape:
        raise InputError(
            f"got {array.dtype} {list(array.shape)}, expected {memory.dtype} {list(memory.shape)}, "
            "for which the memory on the GPU was made; allocate, bind and capture anew for other shapes"
        )
    if not array.flags.c_contiguous:
        raise InputError(f"got {array.dtype} {list(array.shape)} that is not C-contiguous; pass np.ascontiguousarray of it")
