"""The numbers that bound a service: what is taken by default, and what is refused."""

from __future__ import annotations

import threading
from numbers import Real
from typing import Any

from musicrt.runtime.errors import InputError
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.processor import count_cores


def most_together(codec: Codec) -> int:
    """Items that every stage of a system can compute at once."""
    return min((axis.maximum for stage in codec.model.spec.stages for axis in stage.axes if axis.name == "batch"), default=1)


def default_workers(codec: Codec) -> int:
    """Calls that fit beside each other on the CPUs at the threads that each has; one on a GPU, where they take turns."""
    threads = codec.model.threads
    if codec.model.device != "cpu" or threads is None:
        return 1
    return max(count_cores() // threads, 1)


def check_deadline(value: float | None) -> float | None:
    """Seconds from now, or None. Raises InputError."""
    return None if value is None else check_seconds(value, "deadline")


def check_seconds(value: Any, name: str) -> float:
    """Seconds that a thread can wait. Raises InputError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= threading.TIMEOUT_MAX:  # no thread can wait longer
        raise InputError(f"got {name} {value!r}, expected seconds from 0 to {threading.TIMEOUT_MAX:.0f}")
    return float(value)


def check_whole(value: Any, name: str) -> int:
    """A whole number from 1 on. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"got {name} {value!r}, expected a whole number from 1 on")
    return value
