"""A job on a corpus: measure the files, make lots of like lengths, have a pool of workers do them, and note what failed."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data

from musicrt.bulk.cluster import Pool, as_our_errors
from musicrt.bulk.corpus import Corpus
from musicrt.bulk.job import Job
from musicrt.bulk.outputs import FAILED, Outputs, check_name
from musicrt.bulk.worker import Worker, measure, reason_of
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import as_output_error
from musicrt.runtime.progress import Progress, ignore_progress

_LOST = "its worker was lost, with others and alone, as where a node has no memory; see Ray's logs"
_LOOK = 64  # files that a task measures
_SHARES = 4  # lots of each worker at least, so that all of them end together
_LIGHT = {"num_cpus": 0}  # beside workers that have all cores, or nothing would move


@dataclass
class Summary:
    """How a run went: how many inputs there are, how many of them were done before, and how many now; seconds of audio of the latter.

    failed: why, by the input's name.
    """

    total: int
    kept: int
    done: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


def run_job(job: Job, corpus: Corpus, outputs: Outputs, pool: Pool, *, on_progress: Progress = ignore_progress) -> Summary:
    """Do what is not done yet, in a Ray that is connected. What fails is in the summary and in `failed.jsonl` of the folder.

    Raises OutputError for a folder of another job, and what opening the bundle raises.
    """
    with as_our_errors(), outputs.claimed(job.description), _open_list(outputs.folder / FAILED) as file:
        before = outputs.done()
        todo = {name for name in corpus.names if name not in before}
        summary = Summary(len(corpus.names), len(corpus.names) - len(todo))
        for name in sorted(todo):
            if reason := reason_of(partial(check_name, name)):
                todo.remove(name)
                _note(summary, file, name, reason)
        if todo:
            ray.get(ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)(Job.check).remote(job))
        # What is lost with a worker or its node is done once more, each file alone.
        for lot, queue in ((pool.lot, 2), (1, 1)):
            for row in _work(job, corpus, outputs, pool, todo, lot, queue) if todo else ():
                todo.discard(row["name"])
                if row["reason"]:
                    _note(summary, file, row["name"], row["reason"])
                else:
                    summary.done += 1
                    summary.seconds += row["seconds"]
                on_progress(summary.kept + summary.done + len(summary.failed), summary.total)
            if todo:
                there = todo & outputs.done()
                summary.done += len(there)
                todo -= there
        for name in sorted(todo):
            _note(summary, file, name, _LOST)
    return summary


def _work(job: Job, corpus: Corpus, outputs: Outputs, pool: Pool, todo: Collection[str], lot: int, queue: int) -> Iterator[dict[str, Any]]:
    """A report for each file, in the order in which lots end. queue: lots that a worker has."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its own progress; ours is `on_progress`
    if corpus.shards:
        lots, size = _stream_rows(corpus, frozenset(todo), lot), lot
    else:
        found = _measure_files(job, corpus, todo)
        yield from (row for row in found if row["reason"])
        found = [row for row in found if not row["reason"]]
        if not found:
            return
        size = min(lot, math.ceil(len(found) / (_SHARES * pool.workers)))
        lots = _read(ray.data.from_arrow(_cut(found, size)))  # each is a block
    reports = _map(
        lots,
        Worker,
        size,
        fn_constructor_args=(job, outputs),
        compute=ray.data.ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=queue),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=-1,
        max_task_retries=1,
    )
    yield from reports.iter_rows()


def _measure_files(job: Job, corpus: Corpus, todo: Collection[str]) -> list[dict[str, Any]]:
    """The rows of files with their lengths, longest first. Those that were lost with a task, as where a file crashes it, have none."""
    rows = [{"name": name, "path": path} for name, path in zip(corpus.names, corpus.paths, strict=True) if name in todo]
    measured = list(_map(_read(ray.data.from_arrow(_cut(rows, _LOOK))), partial(measure, job), max_retries=0).iter_rows())
    there = {row["name"] for row in measured}
    measured += [{"seconds": 0.0, "reason": "", **row} for row in rows if row["name"] not in there]
    return sorted(measured, key=lambda row: -float(row["seconds"]))


def _stream_rows(corpus: Corpus, todo: Collection[str], lot: int) -> ray.data.Dataset:
    """The rows of Parquet files as they lie there: their bytes are too many to be sorted."""

    def select(rows: pyarrow.Table) -> pyarrow.Table:
        return rows.filter(pyarrow.array([name in todo for name in rows.column("name").to_pylist()], pyarrow.bool_()))

    read = _read(ray.data.read_parquet(list(corpus.shards), columns=["name", "bytes"], partitioning=None, **_LIGHT))
    return _map(read, select, lot, **_LIGHT)


def _read(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The same, without bars, and going on where a block is lost."""
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = -1
    return dataset


def _map(dataset: ray.data.Dataset, work: Any, size: int | None = None, **remote: Any) -> ray.data.Dataset:
    """The tables that `work` makes of tables. What ends its process again and again must not go on for ever, as it does by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other way; 2.64, which drops this one, is not allowed yet
        return dataset.map_batches(work, batch_format="pyarrow", batch_size=size, **remote)


def _cut(rows: Sequence[dict[str, Any]], size: int) -> list[pyarrow.Table]:
    return [pyarrow.Table.from_pylist(list(rows[start : start + size])) for start in range(0, len(rows), size)]


def _open_list(path: Path) -> FileIO:
    """Without a buffer, so that what is noted is there when this run is killed. Raises OutputError."""
    with as_output_error(path):
        return path.open("wb", buffering=0)


def _note(summary: Summary, file: FileIO, name: str, reason: str) -> None:
    """A whole line or none. Raises OutputError."""
    summary.failed[name] = reason
    line, start = json.dumps({"file": name, "reason": reason}).encode() + b"\n", file.tell()
    try:
        with as_output_error(Path(file.name)):
            while line:
                line = line[file.write(line) :]  # less than all of it where the disk fills up, or a signal comes
    except OutputError:
        with contextlib.suppress(OSError):  # a disk that is gone
            file.truncate(start)
        raise
