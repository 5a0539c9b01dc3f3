"""What TensorRT says: its logger and error recorder, in terms of Python's logging.

It reports a failure by returning nothing, and says why to its logger and its error recorder only.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger("musicrt.tensorrt")
_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING, "INFO": logging.DEBUG}
_EXPECTED = re.compile(r"Converting conv (activation|weight) scales to fp32")
"""Warnings of what is meant: kernels in integers have scales in float32, and say so at every convolution."""
_KEPT = 200
_SHOWN = 400  # characters of a reason

Listener = Callable[[str], None]


class Messages:
    """Collects what a member of the family says. `logger`, `recorder`: the objects that TensorRT wants.

    Errors are kept for whoever raises them (`reason`), and logged while nobody waits for them; the rest is logged only.
    `messages_of` is the way to get one.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self._awaited = False
        self._listen: Listener | None = None
        self.logger = _make_logger(trt, self._take)
        self.recorder = _make_recorder(trt, self._record)

    def reason(self) -> str:
        """What went wrong since the last call, in one line; later errors follow from the first."""
        lines = list(dict.fromkeys(self.errors))
        self.errors.clear()
        return ("; ".join(lines)[:_SHOWN]) or "no reason given"

    @contextmanager
    def awaited(self, listen: Listener | None = None) -> Iterator[None]:
        """While errors are raised by the caller: they are not logged as well. `listen` is told every line that is no error."""
        before = self._awaited, self._listen
        self.errors.clear()
        self._awaited, self._listen = True, listen
        try:
            yield
        finally:
            self._awaited, self._listen = before

    def _take(self, severity: str, line: str) -> None:
        level = _LEVELS.get(severity, logging.DEBUG)
        if level == logging.ERROR:
            self._record(line)
        elif self._listen is not None:
            self._listen(line)
        quiet = _EXPECTED.search(line) or (level == logging.ERROR and self._awaited)
        _LOG.log(logging.DEBUG if quiet else level, "%s", line, extra={"event": "tensorrt_said"})

    def _record(self, line: str) -> None:
        if len(self.errors) < _KEPT:
            self.errors.append(" ".join(line.split()))


@functools.cache
def messages_of(trt: Any) -> Messages:
    """The messages of a member of the family, given its module: one object for the whole process.

    A precaution: TensorRT keeps the first logger that it was given as its global one, so that one should not go away.
    """
    return Messages(trt)


def _make_logger(trt: Any, take: Callable[[str, str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, line: str) -> None:
            take(severity.name, line)

    return Logger()


def _make_recorder(trt: Any, record: Callable[[str], None]) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        """Keeps (code, text) of errors until TensorRT clears them."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.kept: list[tuple[Any, str]] = []

        def report_error(self, code: Any, text: str) -> bool:
            self.kept = [*self.kept, (code, text)][-_KEPT:]
            record(text)
            return False  # whether the caller should stop at once

        def num_errors(self) -> int:
            return len(self.kept)

        def get_error_code(self, index: int) -> Any:
            return self.kept[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.kept[index][1]

        def has_overflowed(self) -> bool:
            return len(self.kept) == _KEPT

        def clear(self) -> None:
            self.kept = []

    return Recorder()
