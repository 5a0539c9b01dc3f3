"""What goes into the stages while a pipeline runs: a few feeds of each, drawn evenly from all calls, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from musicrt.runtime.session import Array, Session

Feeds = dict[str, Array]
_BYTES = 256 << 20  # held of a stage; a single feed may be larger


class Reservoir:
    """Up to `most` of the feeds that it is offered, each as likely to be kept as any other; the same calls keep the same ones."""

    def __init__(self, most: int = 8, limit: int = _BYTES) -> None:
        self.feeds: list[Feeds] = []
        self.offered = 0
        self._most, self._limit = most, limit
        self._random = np.random.default_rng(0)

    def offer(self, feeds: Mapping[str, Array]) -> None:
        """Copies what it keeps."""
        self.offered += 1
        size = sum(array.nbytes for array in feeds.values())
        room = max(min(self._most, self._limit // max(size, 1)), 1)
        while len(self.feeds) > room:
            self.feeds.pop()
        place = len(self.feeds) if len(self.feeds) < room else int(self._random.integers(self.offered))
        if place < room:
            kept = {name: np.array(array) for name, array in feeds.items()}
            self.feeds[place : place + 1] = [kept]


class Recorder:
    """Reservoirs of all stages. `recording`: whether calls are offered to them. `seen`: the stages that ran, by what the pipeline did."""

    def __init__(self, most: int = 8) -> None:
        self.reservoirs: dict[str, Reservoir] = {}
        self.seen: dict[str, set[str]] = {}
        self.recording, self.doing = True, ""
        self._most = most

    def note(self, stage: str, feeds: Mapping[str, Array]) -> None:
        self.seen.setdefault(self.doing, set()).add(stage)
        if self.recording:
            self.reservoirs.setdefault(stage, Reservoir(self._most)).offer(feeds)

    def feeds(self, stage: str) -> list[Feeds]:
        """What was kept of a stage."""
        return self.reservoirs[stage].feeds if stage in self.reservoirs else []

    def wrap(self, open_session: Callable[[str], Session]) -> Callable[[str], Session]:
        """Opens sessions whose calls are noted, also those of sampling loops that are bound to buffers."""
        return lambda stage: RecordingSession(open_session(stage), self)


class WatchedSession(Session):
    """Another session, on which subclasses look in `_run` and `_bind`."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner.stage)
        self._inner = inner

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._inner.limits

    def _close(self) -> None:
        self._inner.close()


class RecordingSession(WatchedSession):
    """Another session, whose feeds are noted before each call."""

    def __init__(self, inner: Session, recorder: Recorder) -> None:
        super().__init__(inner)
        self._recorder = recorder

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        self._recorder.note(self.stage.name, feeds)
        return self._inner.run(feeds, names)

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        call = self._inner.bind(feeds, results)

        def noted() -> None:
            self._recorder.note(self.stage.name, feeds)
            call()

        return noted


def smallest(feeds: list[Feeds]) -> Feeds:
    """The feed of the fewest values: what many runs are made with."""
    return min(feeds, key=lambda one: sum(array.size for array in one.values()))
