"""The kernels of the package on the host: their sources, compiled by g++, run by real threads over real memory.

Arithmetic is the same to the bit but for functions like exponentials, which come from the host's library. What g++ can't show: how fast
they are, and what only a GPU does, like running blocks at once.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.compiler import FOLDER
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.kernels import SOURCES, Kernels

Run = Callable[[str, Callable[[], None]], None]
HEADER = Path(__file__).with_name("host_cuda.h")
OPTIONS = ["-std=c++17", "-O1", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror"]
WITH_BARRIERS = {"choose_float", "choose_half"}
MOST_ARGUMENTS = 32


class HostKernels(Kernels):
    """Kernels whose launches run here: `run(name, work)` is called with each, and calls `work` now or later, once or often.

    `sorting`: how many threads stand in for those of a kernel with barriers.
    """

    def __init__(self, run: Run = lambda _name, work: work(), sorting: int = 4) -> None:
        super().__init__(cast(Device, None))
        self._run, self._sorting = run, sorting
        self._library = host_library()

    def prepare(self, *sources: str) -> None:
        """There is nothing to load."""
        assert set(sources) <= set(SOURCES)

    def launch(self, name: str, blocks: int, threads: int, *arguments: Any) -> None:
        """Run a kernel, or have it run; arguments have to be as large as the kernel's."""
        sizes = (ctypes.c_uint * MOST_ARGUMENTS)()
        count = self._library[f"sizes_{name}"](sizes)
        assert [ctypes.sizeof(argument) for argument in arguments] == sizes[:count], f"{name} takes other arguments"
        addresses = (ctypes.c_void_p * count)(*map(ctypes.addressof, arguments))
        together = name in WITH_BARRIERS
        launch, grid = self._library[f"launch_{name}"], (blocks, self._sorting if together else threads)
        launch.restype = None

        def work() -> None:
            assert len(arguments) == count  # keeps them: a launch copies its arguments, and may be replayed when they are gone
            launch(addresses, *map(ctypes.c_uint, grid), ctypes.c_bool(together))

        self._run(name, work)


def on_host(array: np.ndarray[Any, Any]) -> DeviceArray:
    """The memory of a C-contiguous array, for kernels that run on the host; kept alive."""
    assert array.flags.c_contiguous
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, array)


@functools.cache
def host_library() -> ctypes.CDLL:
    """All kernels, compiled once in a process. Skips the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    with tempfile.TemporaryDirectory(prefix="musicrt-kernels-") as folder:
        library = Path(folder, "kernels.so")
        build(library, "-shared", "-fPIC")
        return ctypes.CDLL(str(library))


def build(result: Path, *options: str, more: str = "") -> None:
    """Compile the sources and the exports of their kernels, with more code at the end, into a file."""
    includes = [f'#include "{path}"' for path in (HEADER, *(FOLDER / f"{source}.cu" for source in SOURCES))]
    exports = [f"EXPORT({name})" for names in SOURCES.values() for name in names]
    code = "\n".join([*includes, *exports, more])
    done = subprocess.run(
        ["g++", *OPTIONS, *options, "-x", "c++", "-", "-o", str(result)], input=code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
