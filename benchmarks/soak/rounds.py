"""Rounds of requests, each by new threads on the same pipeline and service, and what the process holds behind each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import say
from benchmarks.soak.clients import EXPECTED, Client, Tally
from benchmarks.soak.judge import FEWEST, FLOORS, Sample, Trend, judge
from benchmarks.soak.workload import Workload
from musicrt.runtime.errors import VerificationError
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.serving.request import RequestEvent
from musicrt.runtime.serving.service import Service

_SETTLE = 60.0
"""Seconds after which a request that nobody waits for has ended."""
_SAY = 30.0


@dataclass(frozen=True)
class Findings:
    """What was seen. events: how many requests of the service ended in which way, as `on_request` has it."""

    samples: Sequence[Sample]
    tally: Tally
    events: Counter[str]

    @property
    def trends(self) -> dict[str, Trend]:
        """Of what is watched, by name."""
        return {watched: judge(self.samples, watched) for watched in FLOORS}

    @property
    def faults(self) -> list[str]:
        """What was not as it has to be, in words; nothing where all was right."""
        wrong = [
            f"{kind}: {outcome}, {count} times" for (kind, outcome), count in self.tally.outcomes.items() if outcome not in EXPECTED[kind]
        ]
        grown = [
            f"{watched} grew by {trend.grown:.3g}, and {trend.allowed:.3g} may be chance"
            for watched, trend in self.trends.items()
            if not trend.is_flat
        ]
        ended = self.events.total()
        lost = [] if ended == self.tally.submitted else [f"{self.tally.submitted} requests were submitted, and {ended} have ended"]
        return [*wrong, *self.tally.faults[:10], *grown, *lost]


def soak(
    codec: Codec,
    work: Workload,
    folder: Path,
    *,
    seconds: float,
    clients: int,
    workers: int | None,
    queue: int,
    steps: int | None,
) -> Findings:
    """Rounds for so long, and at least as many as it takes to judge; in each, every client makes one request of every kind. Before them,
    every call is made as often at once as it can be, so that what that takes does not look like growth when it comes by chance.

    workers, queue: of the service. steps: of the sampler, where the system has them. folder: for the files that clients write.
    """
    samples, tally, events, lock = list[Sample](), Tally(), Counter[str](), threading.Lock()

    def note(event: RequestEvent) -> None:
        with lock:  # it is called in several threads
            events[event.outcome] += 1

    begun = said = time.monotonic()
    with Service(codec, workers=workers, queue=queue, on_request=note) as service:
        most = clients + service.workers
        with ThreadPoolExecutor(most) as pool:
            for piece in (*work.wholes, *work.streams):
                list(pool.map(piece.run, [codec] * most))
        while time.monotonic() - begun < seconds or len(samples) < FEWEST:
            number = clients * len(samples)
            made = [Client(codec, service, work, steps, folder / f"client-{one}.wav", number + one) for one in range(clients)]
            with ThreadPoolExecutor(clients) as pool:
                for one in list(pool.map(Client.run, made)):
                    tally.add(one)
            _wait_until_idle(service)
            samples.append(Sample.take(begun, tally.outcomes.total()))
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                say(f"{samples[-1].seconds:.0f} s: {samples[-1].requests} requests, {samples[-1].memory_mb:.0f} MB")
    return Findings(samples, tally, events)


def _wait_until_idle(service: Service) -> None:
    """Until those that nobody waited for have ended, too. Raises VerificationError where one does not."""
    until = time.monotonic() + _SETTLE
    while service.waiting or service.running:
        if time.monotonic() > until:
            raise VerificationError(f"{service.running} requests still run, {service.waiting} wait, {_SETTLE:g} s after the last was made")
        time.sleep(0.005)
