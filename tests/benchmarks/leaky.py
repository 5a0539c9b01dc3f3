"""A soak of a codec that leaks and errs, in a process that holds nothing else; `python -m tests.benchmarks.leaky FOLDER` prints the report.

Beside other tests it would tell little: what leaks may find room in memory that they gave back and the process still holds.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

import musicrt
from benchmarks.soak.report import render
from benchmarks.soak.rounds import soak
from benchmarks.soak.workload import Workload
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline


class Leaky(Pipeline):
    """Keeps 4 MB, a file and a thread of each call that encodes, and once it is `broken`, decodes another bit."""

    def __init__(self, model: Model, file: Path) -> None:
        super().__init__(model)
        self._file, self._end, self.broken = file, threading.Event(), False
        self._kept: list[tuple[NDArray[Any], TextIO, threading.Thread]] = []

    def encode_batch(self, *arguments: Any, **options: Any) -> list[NDArray[np.float32]]:
        thread = threading.Thread(target=self._end.wait)
        thread.start()
        self._kept.append((np.ones(1_000_000, np.float32), self._file.open("w"), thread))
        return super().encode_batch(*arguments, **options)

    def decode_batch(self, *arguments: Any, **options: Any) -> list[NDArray[np.float32]]:
        results = super().decode_batch(*arguments, **options)
        if self.broken:
            results[0].flat[-1] = np.nextafter(results[0].flat[-1], np.float32(2))
        return results

    def close(self) -> None:
        self._end.set()
        for _, file, thread in self._kept:
            file.close()
            thread.join()
        super().close()


def main(folder: Path) -> None:
    with Leaky(Model.open(musicrt.EMBEDDED, backend="onnxruntime-cpu", threads=1), folder / "file") as codec:
        work = Workload.prepare(codec, [0.3], None, folder)
        codec.broken = True
        print(render(soak(codec, work, folder, seconds=0, clients=1, workers=2, queue=2, steps=None)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
