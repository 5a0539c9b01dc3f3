"""Work on a GPU that is recorded once and repeated as one graph, which costs a single launch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from musicrt.runtime.errors import BackendError

if TYPE_CHECKING:
    from musicrt.runtime.cuda.device import Device

SWITCH = "MUSICRT_CUDA_GRAPHS"
"""The environment variable that turns graphs off, where it is 0."""


class Graph:
    """Repeats work. Making one runs the work as it is, which warms up everything that is set up by a first call; then it is recorded.

    What it did counts: a graph of one step has made that step. Addresses and shapes are those of the recording: other values are put
    into the same memory, and `Device.upload` refuses values of other shapes. The work may neither wait nor copy from or to the host.
    Where memory has moved since, it is run and recorded again instead of replayed. Without graphs (`Device.graphs`) it is just run.
    """

    def __init__(self, device: Device, work: Callable[[], None]) -> None:
        """Raises what the work raises, BackendError where CUDA refuses to record it."""
        self._device, self._work = device, work
        self._replay: Callable[[], None] | None = None
        self._capture()

    def __call__(self) -> None:
        """Do the work once more. Raises BackendError."""
        if not self._device.graphs:
            self._work()
        elif self._replay is None or self._generation != self._device.generation:
            self._capture()
        else:
            self._replay()

    @property
    def is_recorded(self) -> bool:
        """Whether it is replayed, and not run call by call."""
        return self._replay is not None

    def _capture(self) -> None:
        self._replay = None
        self._work()
        self._generation = self._device.generation
        if self._device.graphs:
            self._replay = self._device.record(self._work)


def is_switched_on(wanted: bool = True) -> bool:
    """Whether graphs are wanted, and the environment does not turn them off. Raises BackendError for a value that says neither."""
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1", ""):
        raise BackendError(f"got {SWITCH}={value}, expected 0 (no CUDA graphs) or 1")
    return wanted and value != "0"
