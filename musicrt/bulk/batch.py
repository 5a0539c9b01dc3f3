"""A job on a corpus: measure the files, make lots of like lengths, have a pool of workers do them, and note what failed."""

from __future__ import annotations

import json
import logging
import math
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
from musicrt.runtime.files import as_output_error
from musicrt.runtime.progress import Progress, ignore_progress

_LOST = "its worker failed, with others and alone; see Ray's logs"
_LOOK = 64  # files that a task measures
_SHARES = 4  # lots of each worker at least, so that all of them end together
_LIGHT = {"num_cpus": 0}  # beside workers that have all cores, or nothing would move
_RETRIES = {"max_restarts": -1, "max_task_retries": 1}  # a file that kills its worker must not do so for ever


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
        # What is lost with a worker is done once more, each file alone.
        for lot, look in ((pool.lot, _LOOK), (1, 1)):
            for row in _work(job, corpus, outputs, pool, todo, lot, look) if todo else ():
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


def _work(job: Job, corpus: Corpus, outputs: Outputs, pool: Pool, todo: Collection[str], lot: int, look: int) -> Iterator[dict[str, Any]]:
    """A report for each file, in the order in which lots end."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its own progress; ours is `on_progress`
    if corpus.shards:
        lots, size = _stream_rows(job, corpus, frozenset(todo), lot), lot
    else:
        found = _measure_files(job, corpus, todo, look)
        yield from (row for row in found if row["reason"])
        found = [row for row in found if not row["reason"]]
        if not found:
            return
        share = math.ceil(len(found) / (_SHARES * pool.workers))
        lots, size = _read(ray.data.from_arrow(_cut(found, min(lot, share)))), None  # each is a block
    reports = lots.map_batches(
        Worker,
        fn_constructor_args=(job, outputs),
        compute=ray.data.ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=2),
        batch_format="pyarrow",
        batch_size=size,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        ray_remote_args_fn=lambda: dict(_RETRIES),
    )
    yield from reports.iter_rows()


def _measure_files(job: Job, corpus: Corpus, todo: Collection[str], look: int) -> list[dict[str, Any]]:
    """The rows of files with their lengths, longest first."""
    rows = [{"name": name, "path": path} for name, path in zip(corpus.names, corpus.paths, strict=True) if name in todo]
    measured = _read(ray.data.from_arrow(_cut(rows, look))).map_batches(partial(measure, job), batch_format="pyarrow", batch_size=None)
    return sorted(measured.iter_rows(), key=lambda row: -float(row["seconds"]))


def _stream_rows(job: Job, corpus: Corpus, todo: Collection[str], lot: int) -> ray.data.Dataset:
    """The rows of Parquet files as they lie there, each lot longest first: their bytes are too many to be sorted."""

    def select(rows: pyarrow.Table) -> pyarrow.Table:
        return measure(job, rows.filter(pyarrow.array([name in todo for name in rows.column("name").to_pylist()], pyarrow.bool_())))

    read = _read(ray.data.read_parquet(list(corpus.shards), columns=["name", "bytes"], partitioning=None, **_LIGHT))
    return read.map_batches(select, batch_format="pyarrow", batch_size=lot, **_LIGHT)


def _read(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The same, without bars, and going on where a block is lost."""
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = -1
    return dataset


def _cut(rows: Sequence[dict[str, Any]], size: int) -> list[pyarrow.Table]:
    return [pyarrow.Table.from_pylist(list(rows[start : start + size])) for start in range(0, len(rows), size)]


def _open_list(path: Path) -> FileIO:
    """Without a buffer, so that what is noted is there when this run is killed. Raises OutputError."""
    with as_output_error(path):
        return path.open("wb", buffering=0)


def _note(summary: Summary, file: FileIO, name: str, reason: str) -> None:
    """Raises OutputError."""
    summary.failed[name] = reason
    with as_output_error(Path(file.name)):
        file.write(json.dumps({"file": name, "reason": reason}).encode() + b"\n")
