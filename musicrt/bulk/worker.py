"""What a worker does with a lot of files: the pipeline is loaded once, and what one file does wrong stops no other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow

from musicrt.bulk.job import Job
from musicrt.bulk.outputs import Outputs, Write
from musicrt.bulk.process import FAULTS, JobProcess

REPORT = pyarrow.schema([("name", pyarrow.string()), ("seconds", pyarrow.float64()), ("reason", pyarrow.string())])
"""A row for each file: seconds of audio, and why it failed, empty where it did not."""


class Worker:
    """An actor of the pool. A lot is a table with `name`, `path` or `bytes`, and where they were measured `seconds` and `reason`."""

    def __init__(self, job: Job, outputs: Outputs) -> None:
        """Raises BundleError, BackendError."""
        self._outputs, self._process = outputs, JobProcess(job)

    def __call__(self, lot: pyarrow.Table) -> pyarrow.Table:
        """The report on a lot: a row for each of its files."""
        rows = [{"seconds": 0.0, "reason": "", **row} for row in lot.to_pylist()]
        try:
            with self._outputs.collect([row["name"] for row in rows]) as write:
                for row in rows:
                    row["reason"] = row["reason"] or reason_of(partial(self._work, row, write))
        except FAULTS as error:  # the results of the whole lot could not be kept
            rows = [{**row, "reason": row["reason"] or describe(error)} for row in rows]
        return pyarrow.Table.from_pylist([{key: row[key] for key in REPORT.names} for row in rows], REPORT)

    def _work(self, row: dict[str, Any], write: Write) -> None:
        def make(target: Path) -> None:
            row["seconds"] = self._process.run(source, target, row["seconds"])

        with opened(row) as source:
            write(row["name"], make)


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
