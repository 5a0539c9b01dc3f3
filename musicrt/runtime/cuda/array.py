"""Arrays in the memory of a GPU, which other packages take and give without a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musicrt.runtime.errors import BackendError

ALIGNMENT = 256
"""Bytes that the address of what a network reads or writes has to be a multiple of, as TensorRT wants it."""
_CUDA, _MANAGED = 2, 13  # device types of DLPack


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in the memory of a GPU. `owner` keeps the memory alive.

    torch, cupy, numba, pycuda and others take it by `__cuda_array_interface__` or DLPack; `DeviceArray.of` takes theirs. Neither way
    waits for anything: who writes it on another stream than the device's has to let one wait for the other.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = field(repr=False, default=None)

    @classmethod
    def of(cls, array: Any) -> DeviceArray:
        """The memory of an array of another package, kept alive. Raises BackendError."""
        if isinstance(array, cls):
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            address, shape, dtype = int(interface["data"][0]), tuple(interface["shape"]), np.dtype(interface["typestr"])
            strides = interface.get("strides")
            contiguous = strides is None or _is_contiguous(shape, tuple(stride // dtype.itemsize for stride in strides))
        else:
            address, shape, dtype, contiguous, array = _read_dlpack(array)
        if not contiguous:
            raise BackendError("got an array on the GPU that is not C-contiguous; make a contiguous copy of it")
        return cls(address, shape, dtype, array)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def row(self, index: int) -> DeviceArray:
        """The same memory, at an index of the first axis."""
        part = DeviceArray(0, self.shape[1:], self.dtype, self)
        return DeviceArray(self.address + index * part.nbytes, part.shape, self.dtype, self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3, "strides": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(self, **options: Any) -> Any:
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        buffer = Buffer.from_handle(self.address, self.nbytes, owner=self)
        return StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype).__dlpack__(**options)


def _read_dlpack(array: Any) -> tuple[int, tuple[int, ...], np.dtype[Any], bool, Any]:
    """Address, shape, dtype, whether it is contiguous, and what keeps it alive. Raises BackendError."""
    device = getattr(array, "__dlpack_device__", None)
    if device is None or int(device()[0]) not in (_CUDA, _MANAGED):
        raise BackendError(f"got a {type(array).__name__}, expected an array on the GPU (with __cuda_array_interface__ or DLPack)")
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(array, stream_ptr=-1)
    try:
        dtype = np.dtype(view.dtype)
    except NotImplementedError as error:  # bfloat16, say
        raise BackendError(f"got an array on the GPU of a dtype that NumPy has not ({error}); convert it") from None
    shape, strides = tuple(view.shape), view.strides
    return int(view.ptr), shape, dtype, strides is None or _is_contiguous(shape, tuple(strides)), view


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides, in items, are those of a C-contiguous array; those of axes of one item do not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True
