"""A progress callback for tests."""

from __future__ import annotations

from musicrt.runtime.errors import Cancelled


class Recorder:
    """A progress callback that remembers, and cancels at a given call."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.cancel_at = cancel_at

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if len(self.calls) == self.cancel_at:
            raise Cancelled("enough")

    def assert_complete(self, total: int) -> None:
        done = [call[0] for call in self.calls]
        assert {call[1] for call in self.calls} == {total}
        assert done == sorted(set(done)), "rises with every call"
        assert done[0] > 0
        assert done[-1] == total
