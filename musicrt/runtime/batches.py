"""Running many small pieces of work as few batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.progress import Tally
from musicrt.runtime.windows import Window

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Job:
    """One channel of one window of one signal, with the data that a stage gets."""

    signal: int
    channel: int
    window: Window
    data: Array


Done = tuple[int, Window, Array | None]
"""The signal and window of a job that has run, and its result; not its data, which may be as large as the signal."""


def check_batch(size: object, most: int, name: str = "max_batch_size") -> int:
    """A size of batches from 1 to `most`. Raises InputError, calling it `name`."""
    if isinstance(size, bool) or not isinstance(size, Integral) or not 1 <= int(size) <= most:
        raise InputError(f"got {name} {size!r}, expected a whole number from 1 to {most}")
    return int(size)


def run_batches(
    jobs: Iterable[Job],
    size: int,
    run: Callable[[list[Job]], Sequence[Array | None]],
) -> Iterator[Done]:
    """Run jobs whose data have one shape together, `size` at most.

    A batch runs when it is full or when the jobs end. Jobs of one shape keep their order; jobs are taken as they are needed.
    """
    waiting: dict[Hashable, list[Job]] = {}
    for job in jobs:
        batch = waiting.setdefault(job.data.shape, [])
        batch.append(job)
        if len(batch) == size:
            yield from _finish(waiting.pop(job.data.shape), run)
    while waiting:
        yield from _finish(waiting.pop(next(iter(waiting))), run)


def _finish(batch: list[Job], run: Callable[[list[Job]], Sequence[Array | None]]) -> list[Done]:
    return [(job.signal, job.window, value) for job, value in zip(batch, run(batch), strict=True)]


def run_data(jobs: Iterable[Job], size: int, run: Callable[[list[Array]], Sequence[Array]], tally: Tally) -> Iterator[Done]:
    """The same with a function of the data alone, where a job is a piece of work."""

    def run_batch(batch: list[Job]) -> Sequence[Array]:
        results = run([job.data for job in batch])
        tally.add(len(batch))
        return results

    return run_batches(jobs, size, run_batch)


def stack_channels(results: Iterable[Done], channels: int) -> Iterator[tuple[Window, Array]]:
    """Put the channels of each window of one signal side by side: (window, [channels, ...]); windows without results fall away."""
    rows: list[Array] = []
    for _, window, row in results:
        if row is None:
            continue
        rows.append(row)
        if len(rows) == channels:
            yield window, np.stack(rows)
            rows = []


def split_signals(results: Iterable[Done], channels: Sequence[int]) -> list[Iterator[tuple[Window, Array]]]:
    """The same of several signals with so many channels each, when all jobs have run."""
    signals: list[list[Done]] = [[] for _ in channels]
    for done in results:
        signals[done[0]].append(done)
    return [stack_channels(signal, count) for signal, count in zip(signals, channels, strict=True)]
