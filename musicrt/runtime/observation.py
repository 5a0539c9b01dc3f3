"""Who wants to know how long stages take, and how they are told.

A listener hears of the runs in its own context (`contextvars`): of one thread or task, and of the requests that it gives to a `Service`. So
calls that run at the same time are never mixed up. Where nobody listens, a run of a stage reads the clock and looks at one variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageRun:
    """A run of a stage that ended well.

    backend, precision: as `Choice` has them. sizes: of the stage's axes. runs: evaluations of the network, more than one where a loop on a
    GPU is one piece. seconds: of the host, from the call to its return. The result is there then: calls whose arrays are on a GPU, which
    the host does not wait for, are not reported, and loops there as a whole, with all that is between the evaluations.
    """

    stage: str
    backend: str
    precision: str
    sizes: Mapping[str, int]
    runs: int
    seconds: float


@dataclass(frozen=True)
class StageTime:
    """What a stage took in all. runs, seconds: sums of those of `StageRun`."""

    runs: int = 0
    seconds: float = 0.0


@dataclass
class StageTimes:
    """A listener that adds up, by stage."""

    stages: dict[str, StageTime] = field(default_factory=dict)

    def add(self, run: StageRun) -> None:
        """Hear of a run."""
        sofar = self.stages.get(run.stage, StageTime())
        self.stages[run.stage] = StageTime(sofar.runs + run.runs, sofar.seconds + run.seconds)


Listener = Callable[[StageRun], None]
_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("musicrt_stage_listeners", default=())


@contextlib.contextmanager
def observe_stages(listener: Listener) -> Iterator[None]:
    """Have this called after every run of a stage in the `with` block, and in requests that are submitted there; it should be quick.

    What it raises, the call raises. `with` blocks may be nested: all listeners are called. The blocks of a stream are made when they are
    asked for: that has to be in here, too.
    """
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def listeners_in(context: Context) -> tuple[Listener, ...]:
    """Those that listen in a context which is not the current one."""
    return context.get(_LISTENERS, ())


def tell_listeners(stage: str, backend: str, precision: str, sizes: Mapping[str, int], runs: int, seconds: float) -> None:
    """Called after every run; arguments as in `StageRun`."""
    if listeners := _LISTENERS.get():
        run = StageRun(stage, backend, precision, dict(sizes), runs, seconds)
        for listener in listeners:
            listener(run)
