"""The queue of a service: so many requests and no more, one of each caller in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator

from musicrt.runtime.errors import BusyError
from musicrt.runtime.serving.request import Request


class Line:
    """Requests that wait. Callers take turns; those of one caller keep their order. For one thread at a time."""

    def __init__(self, room: int, share: int) -> None:
        """room: of all callers; share: of one."""
        self._room, self._share = room, share
        self._waiting: dict[Hashable, deque[Request]] = {}  # the first caller is the next; nobody is there without a request

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Request]:
        return (request for requests in list(self._waiting.values()) for request in list(requests))

    def add(self, request: Request, idle: int = 0) -> None:
        """idle: workers that are about to take one each. Raises BusyError where there is no room."""
        own = len(self._waiting.get(request.caller, ()))
        if len(self) >= self._room + idle:
            raise BusyError(f"{len(self)} requests wait already, and there is room for {self._room}; try again later")
        if own >= self._share + idle:
            raise BusyError(f"{own} requests of {request.caller!r} wait already, and each caller may have {self._share}; try again later")
        self._waiting.setdefault(request.caller, deque()).append(request)

    def take(self, fits: Callable[[Request], bool] = lambda _request: True) -> Request | None:
        """The next one that fits; its caller's turn comes again after all others. None: there is none."""
        for caller, requests in self._waiting.items():
            for request in requests:
                if fits(request):
                    self.remove(request)
                    if caller in self._waiting:
                        self._waiting[caller] = self._waiting.pop(caller)
                    return request
        return None

    def remove(self, request: Request) -> None:
        """Take it out, if it is there."""
        requests = self._waiting.get(request.caller)
        if requests and request in requests:
            requests.remove(request)
            if not requests:
                del self._waiting[request.caller]

    def late(self, now: float) -> list[Request]:
        """Those whose deadlines have passed. now: in the seconds of `time.monotonic`."""
        return [request for request in self if request.expires is not None and request.expires <= now]

    @property
    def next_expiry(self) -> float | None:
        """When the next deadline passes; None: never."""
        return min((request.expires for request in self if request.expires is not None), default=None)
