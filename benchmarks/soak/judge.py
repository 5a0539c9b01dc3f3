"""What a process holds on to, and whether it is more and more."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicrt.runtime.errors import InputError

WARM_UP = 1 / 3
"""The share of the samples, from the first on, that is not judged: caches fill, and allocators find their size."""
SCATTER = 2.0
"""How many times the scatter around the line a growth may be that is not one."""
FLOORS = {"memory_mb": 0.0, "files": 0.5, "threads": 0.5}
"""Growth that is none, whatever the scatter, of what is watched."""
SHARE = 0.02
"""The same as a share of what there is: allocators go on finding their size. Of a leak, a longer run makes more than that."""
FEWEST = 10
"""Samples that it takes to tell."""


@dataclass(frozen=True)
class Sample:
    """What this process holds while nobody asks for anything. seconds: since the start; memory_mb: resident, in MB of 10**6 bytes."""

    seconds: float
    requests: int
    memory_mb: float
    files: int
    threads: int

    @classmethod
    def take(cls, begun: float, requests: int) -> Sample:
        """begun: in the seconds of `time.monotonic`. Raises InputError where the system does not tell."""
        status = Path("/proc/self/status")
        if not status.is_file():
            raise InputError("what a process holds can't be told on this system; run the soak on Linux")
        gc.collect()
        resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        files, threads = (sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("fd", "task"))
        return cls(time.monotonic() - begun, requests, int(resident.split()[1]) * 1024 / 1e6, files, threads)


@dataclass(frozen=True)
class Trend:
    """grown: by how much along the line through the samples that are judged; allowed: how much of that may be chance."""

    first: float
    last: float
    grown: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """A line through what does not grow may fall: that is fine."""
        return self.grown <= self.allowed


def judge(samples: Sequence[Sample], watched: str) -> Trend:
    """The rule. Behind the warm-up a line is fitted through the samples. From end to end it may grow by the floor of what is watched, by
    `SHARE` of it, or by `SCATTER` standard deviations of the samples around it, whichever is most. A leak is a line, with little scatter
    around it; a process that goes up and down has much of it. Raises InputError for too few samples.
    """
    if len(samples) < FEWEST:
        raise InputError(f"got {len(samples)} samples, expected at least {FEWEST}; let it run longer")
    kept = samples[round(WARM_UP * len(samples)) :]
    times, values = (np.array([getattr(one, name) for one in kept], np.float64) for name in ("seconds", watched))
    slope, start = np.polyfit(times - times[0], values, 1)
    around = values - (start + slope * (times - times[0]))
    allowed = max(FLOORS[watched], SHARE * float(np.mean(values)), SCATTER * float(np.std(around)))
    return Trend(values[0], values[-1], float(slope * (times[-1] - times[0])), allowed)
