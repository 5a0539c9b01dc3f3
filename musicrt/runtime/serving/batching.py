"""Requests that run as one call of a codec, each with its own result."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Hashable, Iterator, Sequence
from contextvars import Context
from typing import Any

from musicrt.runtime.errors import Cancelled
from musicrt.runtime.observation import Listener, listeners_in, observe_stages
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.serving.request import Call, Request

_LOG = logging.getLogger("musicrt")
_OWN = ("noise", "max_batch_size", "on_progress")
"""Options that are about one request."""


def batch_key(codec: Codec, call: Call) -> Hashable:
    """What a call has in common with those that it may run together with; None: it runs alone."""
    if len(call.args) != 1 or any(call.options.get(name) is not None for name in _OWN):
        return None
    fit = codec.batch_key(call.method, call.args[0], call.options)
    options = tuple(sorted(call.options.items()))
    try:
        hash(options)
    except TypeError:  # an array among the options
        return None
    return None if fit is None else (call.method, fit, options)


def run_together(codec: Codec, requests: Sequence[Request], size: int) -> None:
    """Run requests of one key as one call, and end them; `size` items run at once.

    They run in the context of the first; who listens to the others hears of the runs in theirs. Who is cancelled, or late, ends between two
    steps; the others go on. Where the call fails, each runs alone, so that what is wrong with one is the error of that one.
    """

    def report(_done: int, _total: int) -> None:
        for request in requests:
            request.settle()
        if all(request.done() for request in requests):
            raise Cancelled("nobody waits for this batch any more")

    calls = [request.call for request in requests]
    options = {**calls[0].options, "max_batch_size": size, "on_progress": report}

    def make() -> list[Any]:
        with contextlib.ExitStack() as stack:
            for listener in (*(request.times.add for request in requests), *_other_listeners(requests)):
                stack.enter_context(observe_stages(listener))
            results: list[Any] = getattr(codec, f"{calls[0].method}_batch")([call.args[0] for call in calls], **options)
        return results

    results: list[Any] | None
    try:
        results = requests[0].context.run(make)
    except BaseException as error:  # nothing is lost: each raises its own, below, where what this one holds is freed
        if not all(request.done() for request in requests):
            fields = {"event": "batch_split", "method": calls[0].method, "batch": len(requests), "error": str(error)}
            _LOG.info("a batch of %d requests failed, and each runs alone: %s", len(requests), fields["error"], extra=fields)
        results = None
    if results is None:
        for request in requests:
            request.run(codec)
    else:
        for request, result in zip(requests, results, strict=True):
            request.end(result)


def _other_listeners(requests: Sequence[Request]) -> Iterator[Listener]:
    """Those of all but the first, which its context has; each once, however many requests it listens to."""
    known = {id(listener) for listener in listeners_in(requests[0].context)}
    for request in requests[1:]:
        for listener in listeners_in(request.context):
            if id(listener) not in known:
                known.add(id(listener))
                yield _within(request.context, listener)


def _within(context: Context, listener: Listener) -> Listener:
    """The same listener, called in a context."""
    return lambda run: context.run(listener, run)
