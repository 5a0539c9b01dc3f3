"""What the machine's memory gives: copying and reading arrays that no cache holds, on several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np

MEGABYTES = 512
"""Of an array, in 10**6 bytes."""


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
