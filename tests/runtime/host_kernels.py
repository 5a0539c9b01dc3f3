"""The kernels of the package on the host: their sources, compiled by g++, run by real threads over real memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from musicrt.runtime.cuda.device import DeviceArray
from musicrt.runtime.cuda.kernels import Kernels

Run = Callable[[str, Callable[[], None]], None]


def on_host(array: np.ndarray[Any, Any]) -> DeviceArray:
    """The memory of a C-contiguous array, for kernels that run on the host; kept alive."""
    assert array.flags.c_contiguous
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, array)


class HostKernels(Kernels):
    """Kernels whose launches run here: `run(name, work)` is called with each, and calls `work` now or later, once or often."""

    def __init__(self, run: Run = lambda _name, work: work()) -> None:
        raise NotImplementedError  # comes with the sources
