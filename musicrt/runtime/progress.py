"""How far a call is, for whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how many pieces of work are done and how many there are; may raise `Cancelled` to stop."""


def ignore_progress(_done: int, _total: int) -> None:
    """The default `on_progress`."""


class Tally:
    """Counts the pieces of work of one call, and tells of each."""

    def __init__(self, total: int, on_progress: Progress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, pieces: int = 1) -> None:
        """So many more are done. Raises what `on_progress` raises."""
        self._done += pieces
        self._on_progress(self._done, self._total)
