"""A pipeline that many callers share: a bounded queue and a few workers before it."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Self

from musicrt.runtime.batches import check_batch
from musicrt.runtime.errors import BusyError, InputError
from musicrt.runtime.gate import Gate
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.serving.batching import batch_key, run_together
from musicrt.runtime.serving.bounds import check_deadline, check_seconds, check_whole, default_workers, most_together
from musicrt.runtime.serving.line import Line
from musicrt.runtime.serving.request import Call, Request, RequestEvent
from musicrt.runtime.serving.stream import Stream, StreamRequest

_LOG = logging.getLogger("musicrt")
_KINDS = ("encode", "decode", "generate", "roundtrip")
_STREAM = "_stream"


class Service:
    """Runs the calls of many threads and tasks on one pipeline, so many at once and no more. The pipeline stays the caller's to close::

        with musicrt.Service(codec, workers=2, queue=16) as service:
            request = service.submit("decode", latents, seed=7, deadline=5.0)
            audio = request.result()  # or, in a coroutine: await request
            for block in service.stream("decode_stream", latents, seed=7):  # or: async for
                ...

    Everything is bounded: workers, requests that wait, blocks of a stream that lie ready, and how long one waits for its reader.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        workers: int | None = None,
        queue: int = 16,
        per_caller: int | None = None,
        max_batch: int = 1,
        max_wait: float = 0.0,
        patience: float = 60.0,
        on_request: Callable[[RequestEvent], None] | None = None,
    ) -> None:
        """workers: calls that run at once; None: as many as the CPUs have room for beside each other, at the `threads` that the pipeline
            was loaded with (one, if that was all of them), and one on a GPU.
        queue: requests that may wait, beside those that idle workers take at once. per_caller: of one caller, all of them by default.
        max_batch: calls of one method, with the same options and sources of one shape, that run as one where the system can. Their results
            may then differ from those alone in the last digits, and without a seed they share their noise. max_wait: seconds for which a
            call waits for such others while no other one waits.
        patience: seconds for which a stream keeps its worker while nobody takes a block.
        on_request: called with a `RequestEvent` for each request that has ended, in the thread that ended it and in a copy of the context
            of who asked for it; it should be quick.
        Raises InputError.
        """
        self.codec = codec
        kind = type(codec)
        self._methods = [name for name in dir(kind) if name.startswith(_KINDS) and _reports(getattr(kind, name))]
        self.workers = check_whole(default_workers(codec) if workers is None else workers, "workers")
        self._line = Line(check_whole(queue, "queue"), check_whole(queue if per_caller is None else per_caller, "per_caller"))
        self._max_batch, self._max_wait = check_batch(max_batch, most_together(codec), "max_batch"), check_seconds(max_wait, "max_wait")
        self._patience, self._on_request = check_seconds(patience, "patience"), on_request
        self._numbers = itertools.count(1)
        self._running: set[Request] = set()
        self._change, self._is_closed = threading.Condition(), False
        self._gate = Gate("this service")
        jobs = [(f"musicrt-worker-{number}", self._work) for number in range(1, self.workers + 1)]
        # Daemons, so that a service nobody closed does not keep a program from ending; `atexit` closes it.
        self._threads = [threading.Thread(target=job, name=name, daemon=True) for name, job in [*jobs, ("musicrt-deadlines", self._expire)]]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close, cancel=True)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._change:
            return len(self._line)

    @property
    def running(self) -> int:
        """Requests in workers."""
        with self._change:
            return len(self._running)

    def submit(self, method: str, /, *args: Any, deadline: float | None = None, caller: Hashable = None, **options: Any) -> Request:
        """Ask for a call of one of the pipeline's methods, such as "encode", "decode" or "generate", with its arguments. Does not wait.

        deadline: seconds from now, after which it ends with DeadlineError, in the queue or between two steps. caller: whose request it is;
        callers take turns. Raises BusyError where the queue is full, InputError, and BackendError in a forked child.
        """
        if method.endswith(_STREAM):
            raise InputError(f"got {method!r}, which gives blocks; ask for it with `stream`")
        request = Request(next(self._numbers), self._call(method, args, options, caller), check_deadline(deadline), self._at_end)
        self._add(request)
        return request

    def stream(
        self, method: str, /, *args: Any, ready: int = 2, deadline: float | None = None, caller: Hashable = None, **options: Any
    ) -> Stream:
        """Ask for the blocks of a method such as "decode_stream" or "generate_stream". Does not wait.

        ready: blocks that may lie ready; with so many, the worker waits for the reader. It is held until the last block is taken, or the
        stream is closed. Other arguments and errors as in `submit`.
        """
        if not method.endswith(_STREAM):
            raise InputError(f"got {method!r}, which gives no blocks; ask for it with `submit`")
        call, room = self._call(method, args, options, caller), check_whole(ready, "ready")
        request = StreamRequest(next(self._numbers), call, check_deadline(deadline), self._at_end, room, self._patience)
        self._add(request)
        return Stream(request)

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, and wait for those there are. cancel: end them, at once in the queue, between two steps at work.

        Closing twice is fine. In a callback, which one of its own threads runs, it does not wait; in a forked child it does nothing.
        """
        if self._gate.is_foreign:
            return
        with self._change:
            self._is_closed = True
            self._change.notify_all()
            left = [*self._line, *self._running] if cancel else []
        for request in left:
            request.cancel()
        if threading.current_thread() not in self._threads:  # two callbacks would wait for each other
            for thread in self._threads:
                thread.join()
        atexit.unregister(self.close)

    async def aclose(self, *, cancel: bool = False) -> None:
        """The same without blocking the event loop."""
        await asyncio.to_thread(self.close, cancel=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(cancel=error is not None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose(cancel=error is not None)

    def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any], caller: Hashable) -> Call:
        """Raises InputError for a method that the pipeline has not, or that can't be stopped between two steps."""
        if method not in self._methods:
            raise InputError(f"{self.codec.model.spec.system} has no method {method!r} for a service; it has {', '.join(self._methods)}")
        return Call(method, args, options, caller)

    def _add(self, request: Request) -> None:
        self._gate.check()
        request.key = batch_key(self.codec, request.call) if self._max_batch > 1 else None
        try:
            with self._change:
                if self._is_closed:
                    raise BusyError("this service is closed, and takes no more requests; open another one")
                self._line.add(request, idle=max(self.workers - len(self._running), 0))
                self._change.notify_all()
        except BusyError as error:
            request.end(error=error)
            raise

    def _work(self) -> None:
        while batch := self._next():
            if len(batch) == 1:
                batch[0].run(self.codec)
            else:
                run_together(self.codec, batch, self._max_batch)
            batch.clear()  # nothing of it is kept while this waits for the next

    def _next(self) -> list[Request]:
        """The requests that a worker runs next, as one; none: it is to end."""
        while batch := self._take():
            started = [request for request in batch if request.start()]
            for request in started:
                request.batch = len(started)
            if started:
                return started
        return []

    def _take(self) -> list[Request]:
        """A request from the queue, and those that may run together with it and are there in time."""
        with self._change:
            while (first := self._line.take()) is None:
                if self._is_closed:
                    return []
                self._change.wait()
            batch, until = [first], self._wait_end(first)
            self._running.add(first)
            while first.key is not None and len(batch) < self._max_batch:
                other = self._line.take(lambda request: request.key == first.key)
                left = until - time.monotonic()
                if other is not None:
                    batch.append(other)
                    self._running.add(other)
                    until = min(until, self._wait_end(other))
                elif left <= 0 or len(self._line) or self._is_closed:
                    break
                else:
                    self._change.wait(left)
            return batch

    def _wait_end(self, request: Request) -> float:
        """Until when it may wait for others; it does not where that takes it beyond its deadline."""
        now = time.monotonic()
        return now + self._max_wait if request.expires is None or now + self._max_wait < request.expires else now

    def _expire(self) -> None:
        """End requests whose deadlines pass in the queue, where no worker looks at them."""
        while True:
            with self._change:
                if self._is_closed and not len(self._line):
                    return
                late, expiry = self._line.late(time.monotonic()), self._line.next_expiry
                if not late:
                    self._change.wait(None if expiry is None else max(expiry - time.monotonic(), 0.0))
            for request in late:  # without the lock, because callbacks of the caller's run here
                request.settle()

    def _at_end(self, request: Request, error: BaseException | None) -> None:
        with self._change:
            self._line.remove(request)
            self._running.discard(request)
            self._change.notify_all()
        request.context.copy().run(self._tell, request, error)

    def _tell(self, request: Request, error: BaseException | None) -> None:
        """Say how a request ended, in its context."""
        try:
            event = request.describe(error)
            _log_event(event)
            if self._on_request is not None:
                self._on_request(event)
        except BaseException:  # of the caller's own, SystemExit too: neither the request nor the thread is to suffer from it
            _LOG.exception("on_request failed; the request is not touched by that", extra={"event": "callback_failed"})


def _log_event(event: RequestEvent) -> None:
    """One line for each request. Callers are left out: who they are is nothing for a log by default."""
    fields = {"event": "request_ended", "request": event.number, "method": event.method, "outcome": event.outcome, "batch": event.batch}
    times = {"queued": event.queued, "ran": event.ran, "stages": {name: time.seconds for name, time in event.stages.items()}}
    words = (event.number, event.method, event.outcome, event.queued, event.ran)
    level = logging.WARNING if event.outcome == "failed" else logging.INFO
    error = {} if event.error is None else {"error": str(event.error)}
    _LOG.log(level, "request %d: %s %s, %.3f s in the queue, %.3f s at work", *words, extra={**fields, **times, **error})


def _reports(method: Any) -> bool:
    """Whether it takes `on_progress`, by which it is stopped."""
    if not inspect.isfunction(method):
        return False
    parameters = inspect.signature(method).parameters.values()
    return any(one.name == "on_progress" or one.kind is one.VAR_KEYWORD for one in parameters)
