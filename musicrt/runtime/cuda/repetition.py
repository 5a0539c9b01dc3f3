"""A step on a GPU again and again: a launch of its graph for each time, or one launch of a graph with a loop in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.graph import no_collection
from musicrt.runtime.errors import BackendError

SWITCH = "MUSICRT_CUDA_WHILE"
"""The environment variable that asks for graphs with loops in them, where it is 1."""
_DRIVER = 12040


def repeat(call: Callable[[], None], count: int) -> None:
    """Do it so many times."""
    for _ in range(count):
        call()


class GraphOfLoop:
    """Does a step until a state on the GPU says that it is enough, by one launch of a graph with a WHILE node around the step.

    state: int32 [6], `musicrt.runtime.cuda.arguments.STATE`, which the step advances. The GPU decides by itself: after a column that failed
    nothing runs any more. Needs graphs, and a driver of CUDA 12.4 or newer.
    """

    def __init__(self, device: Device, step: Callable[[], None], state: DeviceArray) -> None:
        """Raises BackendError where there are no such graphs."""
        if not device.graphs:
            raise BackendError(f"got {SWITCH}=1 where CUDA graphs are off or can't be recorded; leave it out, or turn graphs on")
        self._device, self._step, self._state = device, step, state
        self._replay: Callable[[], None] | None = None
        self._generation = -1

    def __call__(self, count: int) -> None:
        """Do it until the state says so, which has to be after `count` times. Raises what the step raises, BackendError."""
        if count and (self._replay is None or self._generation != self._device.generation):
            self._replay = None
            self._step()  # sets up what a first call sets up
            self._device.kernels.prepare("go_on")
            self._generation = self._device.generation
            with no_collection():
                self._replay = self._device.record_loop(self._record)
            count -= 1
        if count and self._replay is not None:
            self._replay()

    def _record(self, condition: int) -> None:
        self._step()
        self._device.kernels.go_on(condition, self._state)


def wants_loops() -> bool:
    """Whether the environment asks for graphs with loops in them. Raises BackendError for a value that says neither."""
    value = os.environ.get(SWITCH, "0")
    if value not in ("0", "1", ""):
        raise BackendError(f"got {SWITCH}={value}, expected 1 (graphs with loops in them) or 0")
    return value == "1"


def record_loop(stream: Any, work: Callable[[int], None]) -> Callable[[], None]:
    """Record work on a stream of cuda-core as the body of a WHILE node: a call that launches that graph.

    work: gets the handle of the node's condition, which is 1 when a launch begins; a kernel of it has to set it. Raises what the work
    raises, BackendError where driver or cuda-core have no such nodes.
    """
    from cuda.bindings import driver

    version = int(_succeed(driver.cuDriverGetVersion()))
    if version < _DRIVER:
        raise BackendError(
            f"the driver is of CUDA {version // 1000}.{version % 1000 // 10}, graphs with loops need 12.4; leave out {SWITCH}"
        )
    try:
        from cuda.core.graph import GraphDefinition
    except ImportError:
        raise BackendError(f"the installed cuda-core makes no graphs with loops; update it, or leave out {SWITCH}") from None
    definition = GraphDefinition()
    condition = definition.create_condition(default_value=1)
    body, mode = definition.while_loop(condition).body, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    handle = driver.CUstream(int(stream.handle))
    _succeed(driver.cuStreamBeginCaptureToGraph(handle, body.handle, None, None, 0, mode))
    try:
        work(int(condition.handle))
    finally:  # a capture that is not ended would refuse all that comes after
        result = driver.cuStreamEndCapture(handle)
    _succeed(result)
    graph = definition.instantiate()
    return lambda: graph.launch(stream)


def _succeed(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise BackendError(f"CUDA failed: {getattr(result[0], 'name', result[0])} at a graph with a loop; leave out {SWITCH}")
    return result[1] if len(result) > 1 else None
