"""What was computed for the last few keys, for several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Keeps the values of the last few keys that were new. Two threads may compute one at the same time; all get the same."""

    def __init__(self, most: int) -> None:
        self._most, self._values, self._lock = most, dict[Hashable, Value](), threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of a key. Raises what `compute` raises."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = compute()  # without the lock: a stage may run for seconds
        with self._lock:
            value = self._values.setdefault(key, value)
            while len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        return value

    def __len__(self) -> int:
        return len(self._values)
