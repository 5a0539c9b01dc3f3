"""Work on a GPU that is recorded once and repeated as one graph, which costs a single launch."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from musicrt.runtime.errors import BackendError

if TYPE_CHECKING:
    from musicrt.runtime.cuda.device import Device

SWITCH = "MUSICRT_CUDA_GRAPHS"
"""The environment variable that turns graphs off, where it is 0."""


class Graph:
    """Repeats work. The first call runs it as it is, which warms up whatever is set up by a first call, then records it; the others replay.

    All calls count: the first call of a graph of one step makes that step. Addresses and shapes are those of the recording: other
    values are put into the same memory, and `Device.upload` refuses values of other shapes. The work may neither wait nor copy from or
    to the host. Where memory has moved since, a call is like the first. Without graphs (`Device.graphs`) all are.
    """

    def __init__(self, device: Device, work: Callable[[], None]) -> None:
        self._device, self._work = device, work
        self._replay: Callable[[], None] | None = None
        self._generation = 0

    def __call__(self) -> None:
        """Enqueue the work. Raises what it raises, and BackendError where CUDA refuses to record it."""
        if self.is_recorded and self._replay is not None:
            self._replay()
            return
        self._replay = None
        self._work()
        if self._device.graphs:
            self._generation = self._device.generation
            with no_collection():
                self._replay = self._device.record(self._work)

    @property
    def is_recorded(self) -> bool:
        """Whether the next call replays."""
        return self._replay is not None and self._generation == self._device.generation


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for cycles: memory that it frees would be freed by the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_switched_on(wanted: bool = True) -> bool:
    """Whether graphs are wanted, and the environment does not turn them off. Raises BackendError for a value that says neither."""
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1", ""):
        raise BackendError(f"got {SWITCH}={value}, expected 0 (no CUDA graphs) or 1")
    return wanted and value != "0"
