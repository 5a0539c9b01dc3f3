"""A session for tests, of ours and of those who use the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec


class FakeSession(Session):
    """A session for tests: computes outputs with a function, or zeros, and records every call."""

    def __init__(self, stage: StageSpec, function: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None) -> None:
        super().__init__(stage)
        self.calls: list[dict[str, Array]] = []
        self._function = function

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        self.calls.append({name: value.copy() for name, value in feeds.items()})
        if self._function is not None:
            produced = self._function(feeds)
            return {name: np.array(produced[name]) for name in names}
        sizes = self._check_inputs(feeds)
        return {t.name: np.zeros(t.resolve(sizes), t.dtype) for t in self.outputs if t.name in names}
