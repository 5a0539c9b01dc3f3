"""Who asks: threads that call a pipeline, by a service and by themselves, in all the ways that callers have."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak.workload import Workload, bits
from musicrt.runtime.bench.calls import decoding_options
from musicrt.runtime.errors import BusyError, Cancelled, DeadlineError, InputError, VerificationError
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.serving.request import Request
from musicrt.runtime.serving.service import Service
from musicrt.runtime.serving.stream import Stream

_PATIENCE = 600.0
"""Seconds after which a request that has not ended is a fault."""
_LATE = 6.0
"""Up to how many times what it takes alone a request has before it is cancelled, or late: others are before it in the queue."""


@dataclass
class Tally:
    """How many requests of each kind ended in which way, and what the faults among them said. For one thread at a time."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    submitted: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Those of another one, too."""
        self.outcomes.update(other.outcomes)
        self.submitted += other.submitted
        self.faults += other.faults


class Client:
    """Makes requests of every kind that `KINDS` names, in an order of its own, and holds what comes of them against the workload."""

    def __init__(self, codec: Codec, service: Service, work: Workload, steps: int | None, target: Path, seed: int) -> None:
        """target: a file of its own to write. seed: of its order, and a name that nobody else has."""
        self._codec, self._service, self._work = codec, service, work
        self._options = decoding_options(codec, steps)
        self._target, self._caller = target, f"client {seed}"
        self._random = random.Random(seed)
        self.tally = Tally()

    def run(self) -> Tally:
        """One request of every kind."""
        for kind in self._random.sample(list(KINDS), len(KINDS)):
            self._note(kind)
        return self.tally

    def call(self) -> bool:
        """Without the service."""
        piece = self._random.choice([*self._work.wholes, *self._work.streams])
        return piece.run(self._codec) == piece.expected

    def stop(self) -> bool:
        """Without the service, and given up at the first progress that is reported."""

        def report(_done: int, _total: int) -> None:
            raise Cancelled("enough")

        self._random.choice([*self._work.wholes, *self._work.streams]).run(self._codec, on_progress=report)
        return False

    def submit(self) -> bool:
        """And wait for the result."""
        piece = self._random.choice(self._work.wholes)
        return bits(self._result(self._submit(piece.method, piece.source, **piece.options))) == piece.expected

    def stream(self) -> bool:
        """And read all blocks."""
        piece = self._random.choice(self._work.streams)
        with self._stream(piece.method, piece.source, **piece.options) as blocks:
            return bits(blocks) == piece.expected

    def leave(self) -> bool:
        """A stream behind its first block."""
        piece = self._random.choice(self._work.streams)
        with self._stream(piece.method, piece.source, **piece.options) as blocks:
            return bits(next(blocks)) == piece.expected[:1]

    def cancel(self) -> bool:
        """At some time, which may be too late."""
        piece = self._random.choice(self._work.wholes)
        request = self._submit(piece.method, piece.source, **piece.options)
        time.sleep(self._random.uniform(0, _LATE * piece.seconds))
        request.cancel()
        return bits(self._result(request)) == piece.expected

    def hurry(self) -> bool:
        """With a deadline that may or may not be met."""
        piece = self._random.choice(self._work.wholes)
        deadline = self._random.uniform(0, _LATE * piece.seconds)
        return bits(self._result(self._submit(piece.method, piece.source, **piece.options, deadline=deadline))) == piece.expected

    def err(self) -> bool:
        """Ask for what can't be done, by the service or without."""
        piece = self._random.choice(self._work.bad)
        if self._random.random() < 0.5:
            piece.run(self._codec)
        elif piece.streams:
            bits(self._stream(piece.method, piece.source, **piece.options))
        else:
            self._result(self._submit(piece.method, piece.source, **piece.options))
        return False

    def write(self) -> bool:
        """A file."""
        request = self._submit("decode_file", self._work.encoded, self._target, **self._options)
        self._result(request)
        return self._target.read_bytes() == self._work.sound

    def flood(self) -> bool:
        """The queue until it is full, and wait for all that was taken."""
        piece = min(self._work.wholes, key=lambda one: one.seconds)
        taken: list[Request] = []
        try:
            while True:
                taken.append(self._submit(piece.method, piece.source, **piece.options))
        finally:
            wrong = sum(bits(self._result(request)) != piece.expected for request in taken)
            if wrong:
                raise VerificationError(f"{wrong} of {len(taken)} results are wrong")

    def _submit(self, method: str, *arguments: Any, **options: Any) -> Request:
        self.tally.submitted += 1
        return self._service.submit(method, *arguments, **options, caller=self._caller)

    def _stream(self, method: str, *arguments: Any, **options: Any) -> Stream:
        self.tally.submitted += 1
        return self._service.stream(method, *arguments, **options, caller=self._caller)

    def _result(self, request: Request) -> Any:
        return request.result(_PATIENCE)

    def _note(self, kind: str) -> None:
        """Make a request, and count how it ended."""
        try:
            outcome = "done" if KINDS[kind](self) else "wrong"
        except tuple(OUTCOMES) as error:
            outcome = next(name for known, name in OUTCOMES.items() if isinstance(error, known))
        except Exception as error:  # whatever it is, it is a fault to be told of, and the soak goes on
            outcome = "failed"
            self.tally.faults.append(f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.tally.outcomes[kind, outcome] += 1


OUTCOMES: Mapping[type[Exception], str] = {
    DeadlineError: "expired",  # before its base
    Cancelled: "cancelled",
    BusyError: "refused",
    InputError: "invalid",
}
"""What the errors mean that a request may end with."""
KINDS: Mapping[str, Callable[[Client], bool]] = {
    name: getattr(Client, name) for name in ("call", "stop", "submit", "stream", "leave", "cancel", "hurry", "err", "write", "flood")
}
"""Kinds of requests; each says whether its result was right, or raises what the request ended with."""
EXPECTED: Mapping[str, frozenset[str]] = {
    "call": frozenset({"done"}),
    "stop": frozenset({"cancelled"}),
    "submit": frozenset({"done", "refused"}),
    "stream": frozenset({"done", "refused"}),
    "leave": frozenset({"done", "refused"}),
    "cancel": frozenset({"done", "cancelled", "refused"}),
    "hurry": frozenset({"done", "expired", "refused"}),
    "err": frozenset({"invalid", "refused"}),
    "write": frozenset({"done", "refused"}),
    "flood": frozenset({"refused"}),
}
"""How each may end."""
