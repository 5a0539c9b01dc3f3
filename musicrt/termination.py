"""SIGTERM as an exception: a command that is told to end takes away what it has half-written, as after any error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM


@contextlib.contextmanager
def tidy_termination() -> Iterator[None]:
    """In here SIGTERM raises SystemExit(143), when what runs natively has returned; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(EXIT_CODE)
