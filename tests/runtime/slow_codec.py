"""A codec whose steps wait until they are let go, so that tests decide what happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.spec import build_spec
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.progress import Progress, ignore_progress
from musicrt.runtime.select import Choice
from tests.conftest import tiny_layout

Float = NDArray[np.float32]
SOON = 10.0
"""Seconds after which what should have happened has not."""


class SlowCodec(Codec):
    """`decode` gives its values plus the seed, step by step, each of which needs a `let`. `order`: the first values of all calls."""

    batched = frozenset({"decode"})

    def __init__(self, *, running: bool = True) -> None:
        """running: whether steps go on by themselves."""
        spec = build_spec(tiny_layout("music2latent")["config"], "slow")
        super().__init__(Model(spec, lambda stage: FakeSession(spec.stage(stage)), Choice("slow", "a test")))
        self.order: list[float] = []
        self.batches: list[int] = []
        self.made = self.ended = 0  # blocks, and streams that were cleaned up
        self.begun = threading.Semaphore(0)
        self._steps, self._running = threading.Semaphore(0), running

    def let(self, steps: int = 1) -> None:
        """Let so many steps go."""
        self._steps.release(steps)

    def wait_for_begin(self) -> None:
        """Until a call that nobody waited for has begun."""
        assert self.begun.acquire(timeout=SOON)

    def decode(
        self, values: Float, *, steps: int = 1, seed: int = 0, fail: BaseException | None = None, on_progress: Progress = ignore_progress
    ) -> Float:
        self.order.append(float(values.flat[0]))
        self.begun.release()
        for step in range(steps):
            self._step()
            if fail is not None:
                raise fail
            on_progress(step + 1, steps)
        if np.isnan(values).any():
            raise InputError("got NaN, expected numbers")
        return values + np.float32(seed)

    def decode_batch(
        self, values: Sequence[Float], *, steps: int = 1, seed: int = 0, max_batch_size: int = 1, on_progress: Progress = ignore_progress
    ) -> list[Float]:
        self.batches.append(len(values))
        assert len(values) <= max_batch_size
        return list(self.decode(np.stack(values), steps=steps, seed=seed, on_progress=on_progress))

    @property
    def shortest(self) -> Float:
        raise NotImplementedError

    def seconds_of(self, values: NDArray[Any]) -> float:
        raise NotImplementedError

    @property
    def encode_source(self) -> Callable[..., Encoded]:
        raise NotImplementedError

    def decode_stream(self, values: Float, *, blocks: int = 4, on_progress: Progress = ignore_progress) -> Iterator[Float]:
        """As many blocks, the values plus 0, 1 …; one of NaN fails."""
        try:
            self.begun.release()
            for block in range(blocks):
                self._step()
                on_progress(block + 1, blocks)
                if np.isnan(values).any():
                    raise InputError("got NaN, expected numbers")
                self.made += 1
                yield values + np.float32(block)
        finally:
            self.ended += 1

    def _step(self) -> None:
        if not self._running:
            assert self._steps.acquire(timeout=SOON)


def number(value: float, size: int = 3) -> Float:
    return np.full(size, value, np.float32)


def until(condition: Callable[[], Any]) -> None:
    """Wait until something has become true in another thread."""
    pause = threading.Event()
    for _ in range(int(SOON / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")
