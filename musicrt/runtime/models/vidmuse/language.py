"""One window of tokens: the language model with its condition and its caches, bound once and stepped in place (SPEC section 6)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.cuda.generation import TokenLoop
from musicrt.runtime.loops.autoregressive import Evaluate
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.conditioner import Keys
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.spec import cache_names, cross_names
from musicrt.runtime.session import Array

Float = NDArray[np.float32]
_SCORES = 1 << 26
"""Attention scores of a layer that a prefill may hold at once: 256 MB. A longer prompt goes on column by column."""


class Window:
    """One sequence, until it is closed. `feed`: see `Evaluate`. `loop`: what can write all of it on a GPU; None on the host.

    Left by an error, it gives nothing to the next one: caches may hold what is no number.
    """

    def __init__(self, feed: Evaluate, loop: TokenLoop | None, give_back: Callable[[], None]) -> None:
        """give_back: called once, with what the next window takes over."""
        self.feed, self.loop = feed, loop
        self._give_back: Callable[[], None] | None = give_back

    def close(self) -> None:
        """Let the next window have the memory. It is not to be used after that; closing twice is fine."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind not in (None, GeneratorExit):
            self._give_back = None
        self.close()


class Language:
    """Opens windows. Caches, the largest buffers, go from a closed window to the next one that they fit."""

    def __init__(self, model: Model, config: Config) -> None:
        self._model, self._config = model, config
        self._caches: dict[str, Array] = {}  # those that no window has
        self._loop: TokenLoop | None = None  # the same on a GPU
        self._lock = threading.Lock()  # no two windows take the same

    def open(self, keys: Keys, null_keys: Keys, columns: int) -> Window:
        """A window of so many columns. keys: of every row; null_keys: of one row without condition, of any length. Raises BackendError.

        Others may be open, in this and other threads.
        """
        session, feeds = self._model.session("lm"), {**keys, **null_keys}
        session.at_close(self._drop)
        batch, heads, tokens, _ = keys[cross_names(1)[0]].shape
        sizes = {"batch": batch, "capacity": max(columns, session.limits["capacity"][0])}
        most = min(max(_SCORES // (batch * heads * (tokens + columns)), 1), session.limits["columns"][1])
        if session.gpu is not None:
            with session.in_use():
                loop = self._take_loop(feeds, sizes)
                loop.begin(feeds, most)
            return Window(loop.feed, loop, partial(self._give_loop, loop))
        caches = self._take_caches(sizes)
        return Window(Steps(self._model, self._config, {**feeds, **caches}, batch, most).feed, None, partial(self._give_caches, caches))

    def _drop(self) -> None:
        self._caches, self._loop = {}, None

    def _take_caches(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Caches with at least that room; those of before, if they fit. What they hold is never looked at before it is written."""
        with self._lock:
            held, self._caches = self._caches, {}
        names = set(cache_names(self._config.layers))  # in 8-bit integers, keys of the condition are states too
        states = [state for state in self._model.session("lm").states if state.name in names]
        needed = states[0].resolve(sizes)
        shape = held[states[0].name].shape if held else (0, 0, 0, 0)
        if shape[0] != needed[0] or not needed[2] <= shape[2] <= 2 * needed[2]:
            held.clear()  # first, so that not both are in memory
            held = {state.name: np.zeros(needed, state.dtype) for state in states}
        return held

    def _give_caches(self, caches: dict[str, Array]) -> None:
        self._caches = caches

    def _take_loop(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> TokenLoop:
        """What writes windows of such sizes; that of before, if it fits."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None or not loop.fits(feeds, sizes):
            loop = None  # first, as above
            pattern = DelayPattern(self._config.delays, self._config.special)
            loop = TokenLoop(self._model.session("lm"), feeds, pattern, sizes)
        return loop

    def _give_loop(self, loop: TokenLoop) -> None:
        self._loop = loop


class Steps:
    """Feeds columns one after the other, on the host. What it gives is overwritten by the next call."""

    def __init__(self, model: Model, config: Config, feeds: Mapping[str, Array], batch: int, most: int) -> None:
        """feeds: all but tokens and length. most: columns that may be fed at once."""
        self._session, self._most = model.session("lm"), most
        self._tokens = np.zeros((batch, config.codebooks, 1), np.int64)
        self._length = np.zeros(1, np.int64)
        self._logits = np.zeros((2, batch, config.codebooks, 1, config.card), np.float32)
        self._feeds = dict(feeds)
        bound: dict[str, Array] = {**self._feeds, "tokens": self._tokens, "length": self._length}
        self._step = self._session.bind(bound, {"logits": self._logits})

    def feed(self, columns: Tokens) -> Float:
        """Feed columns int64 [batch, codebooks, n] -> the logits after the last one, float32 [2, batch, codebooks, card]: those with the
        condition, those without. Raises BackendError.
        """
        first = min(columns.shape[2], self._most) if self._length[0] == 0 else 1
        if first > 1:
            self._prefill(columns[:, :, :first])
            columns = columns[:, :, first:]
        for column in range(columns.shape[2]):
            self._tokens[:, :, 0] = columns[:, :, column]
            self._step()
            self._length += 1
        return self._logits[:, :, :, 0]

    def _prefill(self, columns: Tokens) -> None:
        feeds: dict[str, Array] = {**self._feeds, "tokens": np.ascontiguousarray(columns), "length": self._length}
        self._logits[...] = self._session.run(feeds)["logits"][:, :, :, -1:]
        self._length += columns.shape[2]
