"""One window of tokens: the language model with its condition and its caches, bound once and stepped in place (SPEC section 6)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.loops.delays import Tokens
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.conditioner import Keys
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.spec import cross_names
from musicrt.runtime.session import Array

Float = NDArray[np.float32]
_SCORES = 1 << 26
"""Attention scores of a layer that a prefill may hold at once: 256 MB. A longer prompt goes on column by column."""


class Language:
    """Opens windows. Caches, the largest buffers, go from a window to the next one once nobody holds the former any more."""

    def __init__(self, model: Model, config: Config) -> None:
        self._model, self._config = model, config
        self._caches: dict[str, Array] = {}
        self._latest: Callable[[], Window | None] = lambda: None

    def open(self, keys: Keys, null_keys: Keys, columns: int) -> Window:
        """A window of so many columns. keys: of every row; null_keys: of one row without condition, of any length. Raises BackendError.

        It may be used in turn with others that are open.
        """
        batch, heads, tokens, _ = keys[cross_names(1)[0]].shape
        most = min(max(_SCORES // (batch * heads * (tokens + columns)), 1), self._model.session("lm").limits["columns"][1])
        if self._latest() is not None:
            self._caches = {}  # they are that window's
        window = Window(self._model, self._config, {**keys, **null_keys, **self._room(batch, columns)}, batch, most)
        self._latest = weakref.ref(window)
        return window

    def _room(self, batch: int, columns: int) -> dict[str, Array]:
        """Caches of at least so many columns; those of before, if they fit. What they hold is never looked at before it is written."""
        config, session = self._config, self._model.session("lm")
        needed = (2 * batch, config.heads, max(columns, session.limits["capacity"][0]), config.head_width)
        held = next((cache.shape for cache in self._caches.values()), (0, 0, 0, 0))
        if held[0] != needed[0] or not needed[2] <= held[2] <= 2 * needed[2]:
            self._caches = {}  # first, so that not both are in memory
            self._caches = {state.name: np.zeros(needed, state.dtype) for state in session.states}
        return self._caches


class Window:
    """Feeds columns one after the other. What it gives is overwritten by the next call."""

    def __init__(self, model: Model, config: Config, feeds: Mapping[str, Array], batch: int, most: int) -> None:
        """most: columns that may be fed at once."""
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
