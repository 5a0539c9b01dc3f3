"""Who is inside, so that what is closed can wait for them."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from musicrt.runtime.errors import BackendError


class Gate:
    """Lets the calls of several threads in until it is shut, and those of the process that made it only.

    Threads and locks of a backend do not survive a fork: in the child, a call would wait for ever.
    """

    def __init__(self, name: str) -> None:
        """name: of what is behind it, for errors."""
        self._name, self._process = name, os.getpid()
        self._inside: list[int] = []  # threads; one may be inside several times
        self._change = threading.Condition()
        self._is_shut = False

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a fork of the one that made it."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Raises BackendError where nobody gets in."""
        if self.is_foreign:  # before any lock, which another thread may have held when the process was forked
            raise BackendError(
                f"{self._name} was opened before this process was forked, and can't be used in it; "
                "load the bundle in the child, or start children with multiprocessing's 'spawn'"
            )
        if self._is_shut:
            raise BackendError(f"{self._name} is closed; load the bundle again")

    def shut(self) -> bool:
        """Let nobody in any more, and wait for those inside, but for the calling thread. Whether it was open, and is of this process."""
        if self.is_foreign:
            return False
        with self._change:
            was_open, self._is_shut = not self._is_shut, True
            caller = threading.get_ident()
            self._change.wait_for(lambda: all(thread == caller for thread in self._inside))
        return was_open

    def __enter__(self) -> None:
        """Raises BackendError where nobody gets in."""
        self.check()
        with self._change:
            self.check()
            self._inside.append(threading.get_ident())

    def __exit__(self, *_error: object) -> None:
        with self._change:
            self._inside.remove(threading.get_ident())
            self._change.notify_all()


def call_all(calls: Iterable[Callable[[], object]]) -> None:
    """Make every one of these calls, whatever others raise, so that nothing stays open; the first error is raised in the end, or the
    first that asks to stop, such as KeyboardInterrupt, with notes of the others.
    """
    failed: list[BaseException] = []
    for call in calls:
        try:
            call()
        except BaseException as error:
            failed.append(error)
    if not failed:
        return
    first = next((error for error in failed if not isinstance(error, Exception)), failed[0])
    for note in [f"and then {type(error).__name__}: {error}" for error in failed if error is not first]:
        first.add_note(note)
    try:
        raise first
    finally:  # their frames hold this one: what was closed would stay until Python looks for cycles
        failed.clear()
        del first


def keep_in_forks(owner: Any) -> None:
    """Never let go of what an object owns in a child that is forked while it lives: to free it, a backend would wait for threads that only
    the parent has, and the child would hang when it ends.
    """
    _OWNERS.add(owner)


def _keep_owners() -> None:
    for owner in list(_OWNERS):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))  # of which nobody takes one away again


_OWNERS: WeakSet[Any] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_owners)
