"""One call of a codec on its way through a service: it waits, runs in a worker, and ends exactly once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from musicrt.runtime.errors import BusyError, Cancelled, DeadlineError
from musicrt.runtime.observation import StageTime, StageTimes, observe_stages
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.progress import ignore_progress

Outcome = Literal["done", "failed", "cancelled", "expired", "refused"]


AtEnd = Callable[["Request", BaseException | None], None]


@dataclass(frozen=True)
class Call:
    """What is asked of a codec: a method, a source or values, and options. caller: whose turn it takes."""

    method: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    caller: Hashable = None


@dataclass(frozen=True)
class RequestEvent:
    """How a request ended, for metrics and logs. queued, ran: seconds in the queue and in a worker. batch: requests that ran as one,
    0 where it never ran. error: what `result` raises. stages: what each took, by name; of the whole batch, as `ran`.
    """

    number: int
    method: str
    caller: Hashable
    outcome: Outcome
    queued: float
    ran: float
    batch: int
    error: BaseException | None
    stages: Mapping[str, StageTime] = field(default_factory=dict)


class Request(Future[Any]):
    """The result to come. `result()` waits for it, and raises what the call raised; `await` does so without blocking the event loop.

    The call is made in a copy of the context (`contextvars`) of who asked for it. A task that is cancelled while it awaits cancels the
    request. Besides the errors of the call: Cancelled, DeadlineError.
    """

    def __init__(self, number: int, call: Call, deadline: float | None, at_end: AtEnd) -> None:
        """deadline: seconds from now; None: none. at_end: called once, in the thread that ends it, before `result` returns."""
        super().__init__()
        self.number, self.batch = number, 0
        self.context, self.times = contextvars.copy_context(), StageTimes()
        self.key: Hashable = None  # requests with the same one may run as one
        self._call: Call | None = call
        self._at_end = at_end
        self._lock = threading.RLock()
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._ended: float | None = None
        self._is_unwanted = False
        self.expires = None if deadline is None else self._submitted + deadline
        self.method, self.caller = call.method, call.caller

    @property
    def call(self) -> Call:
        """Raises Cancelled where it has ended, and its arguments are gone."""
        if self._call is None:
            raise Cancelled("this request has ended; submit another one")
        return self._call

    @property
    def queued(self) -> float:
        """Seconds in the queue, so far."""
        return (self._started or self._ended or time.monotonic()) - self._submitted

    @property
    def ran(self) -> float:
        """Seconds in a worker, so far."""
        return 0.0 if self._started is None else (self._ended or time.monotonic()) - self._started

    def cancel(self) -> bool:
        """Ask it to end with Cancelled: at once while it waits, between two steps while it runs. Whether it had not ended yet."""
        had_ended = self.done()
        self.abandon()
        with self._lock:  # what has started, only its worker ends
            waits = self._started is None
        if waits:
            self.settle()
        return not had_ended

    def abandon(self) -> None:
        """The same, when a worker next looks; takes no lock."""
        self._is_unwanted = True

    def settle(self) -> None:
        """End it if it was cancelled, or its deadline has passed."""
        try:
            self.check()
        except (Cancelled, DeadlineError) as error:
            self.end(error=error)

    def check(self) -> None:
        """Raises Cancelled, DeadlineError where it is to go no further."""
        if self._is_unwanted or self.done():
            raise Cancelled(f"the request to {self.method} was cancelled")
        if self.expires is not None and time.monotonic() >= self.expires:
            where = "in the queue" if self._started is None else "at work"
            raise DeadlineError(f"{self.method}: the deadline of {self.expires - self._submitted:g} s passed while the request was {where}")

    def start(self) -> bool:
        """It is in a worker now; False where it is to go no further, and has ended."""
        self.settle()
        with self._lock:
            if self._ended is None and not self._is_unwanted:
                self._started, self.batch = time.monotonic(), 1
                return self.set_running_or_notify_cancel()
        self.settle()  # cancelled since
        return False

    def run(self, codec: Codec) -> None:
        """Make the call, and end with what comes of it."""
        try:
            result = self.context.run(self._make, codec)
        except BaseException as error:  # nothing is lost: `result` raises it
            self.end(error=error)
        else:
            self.end(result)
        finally:
            del self  # the error knows this frame: the two would keep each other

    def _make(self, codec: Codec) -> Any:
        """The result of the call, in the context of the request."""
        try:
            call = self.call
            with observe_stages(self.times.add):
                return getattr(codec, call.method)(*call.args, **{**call.options, "on_progress": self.report})
        finally:
            del self  # as there

    def report(self, done: int, total: int) -> None:
        """What the call gets as `on_progress`. Raises Cancelled, DeadlineError, and what the caller's own raises."""
        self.check()
        self.call.options.get("on_progress", ignore_progress)(done, total)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give result or error to those who wait; only the first counts."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = time.monotonic()
            self._call = None  # arrays of the caller's
        self._at_end(self, error)
        if error is None:
            self.set_result(result)
        else:
            _let_go(error)
            self.set_exception(error)

    def describe(self, error: BaseException | None) -> RequestEvent:
        """How it ended."""
        match error:
            case None:
                outcome: Outcome = "done"
            case DeadlineError():
                outcome = "expired"
            case Cancelled():
                outcome = "cancelled"
            case BusyError():
                outcome = "refused"
            case _:
                outcome = "failed"
        times = self.queued, self.ran
        return RequestEvent(self.number, self.method, self.caller, outcome, *times, self.batch, error, dict(self.times.stages))

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()


def _let_go(error: BaseException | None) -> None:
    """Empty the frames of an error, and of those that it comes from. They hold arrays of the call, and the request by its `report`, which
    holds the error: where memory ran out, the next request would find as little, until Python looks for cycles. Lines and names stay.
    """
    waiting, seen = [error], set[int]()  # causes may go in circles
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
