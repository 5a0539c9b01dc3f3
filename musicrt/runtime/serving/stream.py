"""Blocks on their way from a worker to a reader, a few at a time: who reads slowly, or not at all, stops the worker and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from musicrt.runtime.errors import DeadlineError
from musicrt.runtime.observation import observe_stages
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.serving.request import AtEnd, Call, Request

_LOOK = 0.1
"""Seconds after which a worker that waits for the reader looks whether it still should."""


class StreamRequest(Request):
    """A request that gives blocks. It holds its worker until the last is made, and room for it is there."""

    def __init__(
        self,
        number: int,
        call: Call,
        deadline: float | None,
        at_end: AtEnd,
        room: int,
        patience: float,
    ) -> None:
        """room: blocks that may lie ready. patience: seconds for which the worker waits for the reader."""
        super().__init__(number, call, deadline, at_end)
        self._room, self._patience = room, patience
        self._blocks: deque[Any] = deque()
        self._change = threading.Condition()
        self._wakers: list[Callable[[], object]] = []

    def _make(self, codec: Codec) -> None:
        """See `Request`."""
        try:
            call = self.call
            with observe_stages(self.times.add):
                blocks = getattr(codec, call.method)(*call.args, **{**call.options, "on_progress": self.report})
                with contextlib.closing(blocks) if hasattr(blocks, "close") else contextlib.nullcontext():
                    for block in blocks:
                        self._put(block)
        finally:
            del self  # as there

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """See `Request`. The reader, who may wait, is told; by no callback, because it would keep the request with its blocks."""
        super().end(result, error)
        self._tell()

    def take(self) -> Any:
        """The next block, waiting for it. Raises StopIteration after the last, and what the call raised."""
        with self._change:
            self._change.wait_for(lambda: self._blocks or self.done())
            return self._pop()

    def poll(self, wake: Callable[[], object]) -> Any:
        """The next block if it lies ready, else None, and `wake` is called when to ask again. Raises as `take` does."""
        with self._change:
            if self._blocks or self.done():
                return self._pop()
            self._wakers.append(wake)
            return None

    def drop(self) -> None:
        """Forget what lies ready."""
        with self._change:
            self._blocks.clear()

    def _pop(self) -> Any:
        if self._blocks:
            self._change.notify_all()
            return self._blocks.popleft()
        self.result()
        raise StopIteration

    def _put(self, block: Any) -> None:
        since = time.monotonic()
        with self._change:
            while len(self._blocks) >= self._room:
                self.check()
                if time.monotonic() - since >= self._patience:
                    raise DeadlineError(f"{self.method}: nobody took a block for {self._patience:g} s; read faster, or close the stream")
                self._change.wait(_LOOK)
            self.check()
            self._blocks.append(block)
        self._tell()

    def _tell(self) -> None:
        with self._change:
            self._change.notify_all()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                wake()


class Stream:
    """The blocks of a call, each as soon as it is there: for `for` and `async for`. Closed early, or dropped, it frees its worker.

    request: the call behind it, to cancel, and for its times.
    """

    def __init__(self, request: StreamRequest) -> None:
        self.request = request

    def close(self) -> None:
        """End the call between two steps, and forget what lies ready; closing twice is fine."""
        self.request.cancel()
        self.request.drop()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.request.take()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            ready = asyncio.Event()
            try:
                block = self.request.poll(partial(loop.call_soon_threadsafe, ready.set))
            except StopIteration:
                raise StopAsyncIteration from None
            if block is not None:
                return block
            try:
                await ready.wait()
            except asyncio.CancelledError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.request.abandon()  # no more than that: it may be called in the middle of anything
