"""Asks the NVIDIA driver whether there is a GPU, before any GPU runtime is imported (some crash without a driver)."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, …_MINOR


@functools.cache
def cuda_obstacle() -> str | None:
    """Why CUDA can't be used here; None if it can."""
    try:
        driver = _load()
    except OSError:
        return "no NVIDIA driver (libcuda is not installed)"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver refuses to start (CUDA error {status})"
    return None if count.value else "no NVIDIA GPU"


def device_obstacle() -> str | None:
    """Why sampling loops can't stay on the GPU, with a backend that runs without the packages which that takes; None if they can."""
    there = importlib.util.find_spec("cuda") and all(importlib.util.find_spec(f"cuda.{name}") for name in ("core", "bindings"))
    return None if there else "cuda-core is not installed (pip install 'musicrt[device]')"


def gpu_architecture(index: int = 0) -> str | None:
    """That of a GPU, such as "sm_89"; None where there is none, or the driver does not say."""
    if cuda_obstacle():
        return None
    driver, device = _load(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    return None if failed else f"sm_{major.value}{minor.value}"


def list_gpus() -> list[tuple[str, str, float]]:
    """Name, architecture, and memory in GB of 10**9 bytes of every GPU; none where there is none, or the driver does not say."""
    if cuda_obstacle():
        return []
    driver, count, found = _load(), ctypes.c_int(), []
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        )
        if not failed:
            found.append((name.value.decode("utf-8", "replace"), gpu_architecture(index) or "unknown", round(size.value / 1e9, 1)))
    return found


def driver_version() -> str | None:
    """The CUDA that the driver speaks, such as "13.0"; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = _load().cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _load() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
