"""What a sampler is given, and both ways of running it: the loop on the host, as in the package, and what one graph is composed of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.whole_loop.compose import Array, Sampler
from musicrt.runtime.model import Model

Arrays = dict[str, Array]
Run = Callable[[], Arrays]
SEED = 9


@dataclass(frozen=True)
class Size:
    """How much is sampled. seconds: of audio. steps: evaluations of the network; of a language model the columns that it writes of a window
    of so many seconds, all at most. choice: of tokens, "greedy" or a number for top_k. frames: of the video that a language model sees.
    """

    seconds: float
    steps: int
    guidance: float
    choice: str = "greedy"
    frames: int = 1


class Problem(Protocol):
    """The sampler of one system, of so much."""

    @property
    def stage(self) -> str:
        """The network that every step runs."""
        ...

    @property
    def result(self) -> tuple[str, type[np.generic]]:
        """The name of what both ways give, and its dtype."""
        ...

    def prepare(self, codec: Any) -> Arrays:
        """Everything that a sampler is given, computed by the other stages."""
        ...

    def feeds(self, arrays: Arrays) -> Arrays:
        """What of it the composed graph is given, and the caches that it begins with."""
        ...

    def sampler(self, arrays: Arrays) -> Sampler:
        """What is to be composed around the network. Raises InputError where that is not known."""
        ...

    def host(self, model: Model, arrays: Arrays) -> Run:
        """The loop on the host."""
        ...
