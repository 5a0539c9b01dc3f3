"""A process of its own for the pipeline: a file that ends it (a crash in a library, no memory) ends nothing else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from musicrt.bulk.job import Job
from musicrt.runtime.errors import BackendError, MusicRTError

FAULTS = (MusicRTError, OSError, MemoryError)
"""What concerns one file. Anything else is a fault of the program, and ends the process."""
_PATIENCE = 10.0
"""Seconds that a process has to end in which it does not answer any more."""


class JobProcess:
    """Does files of a job, one after the other. After one that ended it, it is started again."""

    def __init__(self, job: Job) -> None:
        """Raises what `Job.open` does."""
        self._job = job
        self._start()

    def run(self, source: Path, target: Path, seconds: float = 0.0) -> float:
        """Make one file of another: the seconds of audio or video in it, which are measured where they are not given.

        Raises what `Job.measure` and `Job.run` do, BackendError for a file that ended the process two times, and PipelineLostError where
        the process can't be started again, which is not the file's fault.
        """
        for _ in range(2):  # the first time, it may have been for the memory that others took
            try:
                if not self._process.is_alive():
                    self._restart()
                return float(self._ask(source, target, seconds))
            except _EndedError:
                self._wait()
        raise BackendError(f"it ended its worker's process two times, the last time {self._end}; see Ray's logs, or take the file out")

    @property
    def _end(self) -> str:
        """How the process ended, and why as a rule."""
        code = self._process.exitcode or 0
        if code >= 0:
            return f"with exit status {code}"
        known = {one.value: one.name for one in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        return f"by {name}, {'mostly a lack of memory' if name == 'SIGKILL' else 'mostly a crash in a library'}"

    def _start(self) -> None:
        """Raises what `Job.open` does, and BackendError where opening ends the process."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._job, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here
        try:
            self._ask()
        except _EndedError:
            self._wait()
            raise BackendError(f"opening {self._job.bundle} ended the process {self._end}; see Ray's logs") from None

    def _restart(self) -> None:
        """Raises PipelineLostError."""
        try:
            self._start()
        except FAULTS as error:
            raise PipelineLostError(f"the pipeline can't be opened again: {error}") from error

    def _wait(self) -> None:
        """Until the process is gone, which may hang at its end."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, *file: Path | float) -> Any:
        """What it answers to the paths and seconds of a file, or says when it has begun. Raises what was raised there, and _EndedError."""
        try:
            if file:
                self._pipe.send(file)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise _EndedError from None
        if isinstance(answer, Exception):
            raise answer
        return answer


class PipelineLostError(RuntimeError):
    """A worker has no pipeline any more: the lot it was given is to be done by another one."""


class _EndedError(Exception):
    """The process ended."""


def _serve(job: Job, pipe: Connection) -> None:
    """Until the other end is closed."""
    logging.basicConfig()  # to stderr, which Ray keeps
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        codec = job.open()
    except FAULTS as error:
        pipe.send(error)
        return
    with codec:
        pipe.send(None)
        while True:
            try:
                source, target, seconds = pipe.recv()
            except EOFError:
                return
            try:
                answer: Any = seconds or job.measure(source)
                job.run(codec, source, target)
            except FAULTS as error:
                answer = error
            pipe.send(answer)


def _end_with_parent() -> None:
    """Also in the middle of a file: nobody waits for it any more."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
