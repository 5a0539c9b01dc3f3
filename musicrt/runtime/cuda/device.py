"""A GPU, as far as a backend needs it: memory, one stream, copies. Made of NVIDIA's cuda-core; the driver has to be there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Array


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in the memory of a GPU. `owner` keeps the memory alive.

    Other packages take it without a copy through `__cuda_array_interface__`; `DeviceArray.of` takes theirs.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = field(repr=False, default=None)

    @classmethod
    def of(cls, array: Any) -> DeviceArray:
        """The memory of an array with `__cuda_array_interface__` (torch, cupy, numba, pycuda), kept alive. Raises BackendError."""
        if isinstance(array, cls):
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise BackendError(f"got a {type(array).__name__}, expected an array on the GPU (with __cuda_array_interface__)")
        if interface.get("strides") is not None:
            raise BackendError("got an array on the GPU that is not C-contiguous; make a contiguous copy of it")
        return cls(int(interface["data"][0]), tuple(interface["shape"]), np.dtype(interface["typestr"]), array)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3, "strides": None}


class Device:
    """The first GPU and a stream of its own, never the default one, which could not be captured. One for all stages of a pipeline."""

    def __init__(self) -> None:
        """Raises BackendError where CUDA can't be started."""
        import cuda.core
        from cuda.bindings import driver

        self._driver = driver
        self._device = cuda.core.Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.handle)

    def make_current(self) -> None:
        """For the calling thread."""
        self._device.set_current()

    def allocate(self, size: int) -> Any:
        """So many bytes, freed behind the work on the stream when nobody holds them any more. `handle` is the address."""
        return self._device.allocate(max(size, 1), stream=self._stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array of undefined content."""
        kind = np.dtype(dtype)
        buffer = self.allocate(math.prod(shape) * kind.itemsize)
        return DeviceArray(int(buffer.handle), shape, kind, buffer)

    def clear(self, array: DeviceArray, stream: int | None = None) -> None:
        """Fill with zeros."""
        self._check(self._driver.cuMemsetD8Async(array.address, 0, array.nbytes, self._stream_of(stream)))

    def upload(self, array: Array, to: DeviceArray, stream: int | None = None) -> None:
        """Copy a C-contiguous array of the same bytes; it may be changed when this returns, if it is no page-locked memory."""
        self._check(self._driver.cuMemcpyHtoDAsync(to.address, array.ctypes.data, array.nbytes, self._stream_of(stream)))

    def download(self, array: DeviceArray, to: Array, stream: int | None = None) -> None:
        """Copy into a C-contiguous array of the same bytes; it is there after `wait`."""
        self._check(self._driver.cuMemcpyDtoHAsync(to.ctypes.data, array.address, array.nbytes, self._stream_of(stream)))

    def wait(self, stream: int | None = None) -> None:
        """Until all work on the stream is done. Errors of that work show here, as BackendError."""
        self._check(self._driver.cuStreamSynchronize(self._stream_of(stream)))

    def wait_for_all(self) -> None:
        """Until all work on all streams is done."""
        self._check(self._driver.cuCtxSynchronize())

    def _stream_of(self, stream: int | None) -> Any:
        return self._driver.CUstream(self.stream if stream is None else stream)

    def _check(self, result: tuple[Any, ...]) -> None:
        if int(result[0]) != 0:
            raise BackendError(f"CUDA failed: {getattr(result[0], 'name', result[0])}; look for other programs on the GPU, then load again")


class Arena:
    """Scratch memory that the stages of a pipeline share: they run one after the other on one stream, and each needs it for a call only.

    A graph that was captured before the arena had to grow must not be replayed: `reserve` what is needed first.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Any = None
        self.size = 0

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes, another one than before if the arena had to grow."""
        if self._buffer is None or size > self.size:
            if self._buffer is not None:
                self._device.wait_for_all()  # calls on a stream of the caller's may still use it
            self._buffer, self.size = self._device.allocate(size), size
        return int(self._buffer.handle)
