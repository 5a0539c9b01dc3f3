"""What the machine gives: products of large matrices, and copying and reading arrays that no cache holds."""

from __future__ import annotations

import importlib.util
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musicrt.runtime.bench.settings import SEED
from musicrt.runtime.measure import measure, run_isolated

MEGABYTES = 512
"""Of an array, in 10**6 bytes."""
SIZE = 1536
"""Rows and columns of the matrices."""
_REPEATS = 5


def run_peaks(threads: int | None, cores: int) -> dict[str, float]:
    """`measure_peaks` in a fresh process."""
    return run_isolated(f"{__name__}:measure_peaks", {"threads": threads, "cores": cores}, _thread_variables(threads))


def run_products(threads: int | None) -> dict[str, float]:
    """`measure_products` in a fresh process."""
    return run_isolated(f"{__name__}:measure_products", {"threads": threads}, _thread_variables(threads))


def _thread_variables(threads: int | None) -> dict[str, str]:
    """Environment of a process whose libraries for products are to have so many threads; they read it when they are loaded."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) if threads else {}


def measure_peaks(threads: int | None, cores: int, megabytes: int = MEGABYTES) -> dict[str, float]:
    """GFLOP/s as `measure_products` gives them, and `copy` and `read` in GB/s (10**9 bytes).

    cores: what works on memory where `threads` is None. A copy counts bytes read and written.
    """
    memory = Memory(threads or cores, megabytes)
    copied = memory.copied / min(measure(memory.copy, 1, _REPEATS)) / 1e9
    read = memory.read_bytes / min(measure(memory.read, 1, _REPEATS)) / 1e9
    del memory
    return {**measure_products(threads), "copy": copied, "read": read}


def measure_products(threads: int | None = None, size: int = SIZE) -> dict[str, float]:
    """The best rate of a square product by precision, in 10**9 operations a second: of NumPy and torch, where that is installed.

    threads: of torch; NumPy's follow the environment, see `run_products`.
    """
    a, b = np.random.default_rng(SEED).standard_normal((2, size, size), np.float32)
    calls: dict[str, list[Callable[[], object]]] = {"float32": [lambda: a @ b]}
    if importlib.util.find_spec("torch") is not None:
        for name, call in _torch_products(a, b, threads).items():
            calls.setdefault(name, []).append(call)
    return {name: max(2.0 * size**3 / min(measure(call, 1, _REPEATS)) / 1e9 for call in ways) for name, ways in calls.items()}


def _torch_products(a: Any, b: Any, threads: int | None) -> Mapping[str, Callable[[], object]]:
    import torch

    if threads:
        torch.set_num_threads(threads)

    def product(dtype: torch.dtype) -> Callable[[], object]:
        x, y = (torch.from_numpy(matrix).to(dtype) for matrix in (a, b))
        return lambda: x @ y

    return {"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}


class Memory:
    """Two arrays, and calls on them whose bytes are known."""

    def __init__(self, threads: int, megabytes: int = MEGABYTES) -> None:
        size = megabytes * 1_000_000 // 4
        self._source, self._target = np.ones(size, np.float32), np.zeros(size, np.float32)
        self._target[:] = 1.0  # so that its pages are there
        edges = np.linspace(0, size, threads + 1).astype(int).tolist()
        self._slices = [slice(*pair) for pair in itertools.pairwise(edges)]

    @property
    def copied(self) -> int:
        """Bytes that `copy` reads and writes."""
        return self._source.nbytes + self._target.nbytes

    @property
    def read_bytes(self) -> int:
        """Bytes that `read` reads."""
        return self._source.nbytes

    def copy(self) -> None:
        """Copy one array into the other, a share on each thread."""
        self._run(lambda part: np.copyto(self._target[part], self._source[part]))

    def read(self) -> None:
        """Find the largest value of an array, a share on each thread."""
        self._run(lambda part: self._source[part].max())

    def _run(self, work: Callable[[slice], object]) -> None:
        workers = [threading.Thread(target=work, args=(part,)) for part in self._slices]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
