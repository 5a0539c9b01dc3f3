"""What a worker does with a lot of files: the pipeline is loaded once, and what one file does wrong stops no other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow

from musicrt.bulk.job import Job
from musicrt.bulk.outputs import Outputs
from musicrt.runtime.errors import MusicRTError

FAULTS = (MusicRTError, OSError, MemoryError)
"""What concerns one file. Anything else is a fault of the program, and is left to end the lot."""

REPORT = pyarrow.schema([("name", pyarrow.string()), ("seconds", pyarrow.float64()), ("reason", pyarrow.string())])
"""A row for each file: seconds of audio, and why it failed, empty where it did not."""


class Worker:
    """An actor of the pool. A lot is a table with `name`, `seconds`, `reason`, and `path` or `bytes`."""

    def __init__(self, job: Job, outputs: Outputs) -> None:
        """Raises BundleError, BackendError."""
        logging.basicConfig()  # to stderr, which Ray keeps
        self._job, self._outputs, self._codec = job, outputs, job.open()

    def __call__(self, lot: pyarrow.Table) -> pyarrow.Table:
        """The report on a lot: a row for each of its files."""
        rows = lot.to_pylist()
        try:
            with self._outputs.collect([row["name"] for row in rows]) as write:
                for row in rows:
                    row["reason"] = row["reason"] or reason_of(partial(self._work, row, write))
        except FAULTS as error:  # the results of the whole lot could not be kept
            rows = [{**row, "reason": row["reason"] or describe(error)} for row in rows]
        return pyarrow.Table.from_pylist([{key: row[key] for key in REPORT.names} for row in rows], REPORT)

    def _work(self, row: Mapping[str, Any], write: Any) -> None:
        with opened(row) as source:
            write(row["name"], partial(self._job.run, self._codec, source))


def measure(job: Job, rows: pyarrow.Table) -> pyarrow.Table:
    """The same rows, longest first, with `seconds` and `reason`: why a file can't be read, empty where it can."""
    measured = rows.to_pylist()
    for row in measured:
        row["seconds"] = 0.0

        def look(row: dict[str, Any] = row) -> None:
            with opened(row) as source:
                row["seconds"] = job.measure(source)

        row["reason"] = reason_of(look)
    fields = [field for field in rows.schema if field.name not in REPORT.names]
    schema = pyarrow.schema([*REPORT, *fields])
    return pyarrow.Table.from_pylist(sorted(measured, key=lambda row: -float(row["seconds"])), schema)


@contextlib.contextmanager
def opened(row: Mapping[str, Any]) -> Iterator[Path]:
    """The file of a row, for a while where only its bytes are there."""
    if "path" in row:
        yield Path(row["path"])
        return
    with TemporaryDirectory() as folder:
        path = Path(folder, "input" + Path(row["name"]).suffix)
        path.write_bytes(row["bytes"])
        yield path


def reason_of(work: Any) -> str:
    """Why some work on a file failed; empty where it did not."""
    try:
        work()
    except FAULTS as error:
        return describe(error)
    return ""


def describe(error: BaseException) -> str:
    """In one line."""
    return " ".join(str(error).split()) or f"{type(error).__name__}: not enough memory; give workers fewer threads or shorter files"
