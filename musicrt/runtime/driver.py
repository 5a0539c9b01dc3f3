"""Asks the NVIDIA driver whether there is a GPU, before any GPU runtime is imported (some crash without a driver)."""

from __future__ import annotations

import ctypes
import functools
import sys


@functools.cache
def cuda_obstacle() -> str | None:
    """Why CUDA can't be used here; None if it can."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda is not installed)"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver refuses to start (CUDA error {status})"
    return None if count.value else "no NVIDIA GPU"
