"""Arrays of other packages on a GPU, by __cuda_array_interface__ and DLPack."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Array
from tests.conftest import refused
from tests.runtime.fake_gpu import memory_of


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
