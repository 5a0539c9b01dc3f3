"""Choosing a token of each row of logits (SPEC of VidMuse, section 7): what may be chosen, with which weights, by which random numbers.

Probabilities are float32, as in the networks; what is summed up to compare with a uniform number is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]
Draw = Callable[[int, Float], Tokens]
"""`draw(call, weights)`: an entry of each row of weights float32 [rows, n], which sum up to 1, by the random numbers of one call."""
COLDEST, _HOTTEST = 1e-30, 1e6


@dataclass(frozen=True)
class Draws:
    """Uniform numbers of a run, known beforehand: those of a seed (`musicrt.runtime.noise.uniform_numbers`), or given ones, float64 [rows]
    of each draw.
    """

    seed: int = 0
    given: Sequence[NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Sampling:
    """What may be chosen. The defaults are those of VidMuse.

    top_k: the k likeliest tokens, and those that are as likely as the last of them; 0: all. top_p: instead the likeliest tokens up to
    the one that brings their sum above top_p; 0: off, above 0 it wins over top_k. temperature: what logits are divided by; 0: always the
    likeliest token, the first of equal ones (greedy).
    """

    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0

    def check(self, card: int) -> Sampling:
        """Itself, for tokens 0 to card - 1. Raises InputError for values outside their range."""
        k = self.top_k
        if isinstance(k, bool) or not isinstance(k, Integral) or not 0 <= k <= card:
            raise InputError(f"got top_k {k!r}, expected a whole number from 1 to {card} (as many tokens as there are), or 0 for all")
        if not _is_between(self.top_p, 0.0, 1.0):
            raise InputError(f"got top_p {self.top_p!r}, expected a number from 0 to 1; 0 is off")
        if not _is_between(self.temperature, 0.0, _HOTTEST):
            raise InputError(f"got temperature {self.temperature!r}, expected a number from 0 to {_HOTTEST:.0e}; 0 is greedy")
        return self

    @property
    def is_greedy(self) -> bool:
        """Whether no random numbers are needed."""
        return self.temperature == 0

    def weigh(self, logits: Float) -> tuple[Float, Tokens | None]:
        """Probabilities float32 [rows, n] of logits [rows, n], 0 for what is left out, and the token of each entry; None: its own number.

        Of top_p the entries fall; equal ones keep their order.
        """
        weights = softmax(logits / np.float32(max(self.temperature, COLDEST)))  # colder ones choose alike, and would overflow
        if self.top_p > 0:
            order = np.argsort(-weights, axis=1, kind="stable")
            weights = np.take_along_axis(weights, order, axis=1)
            before = np.cumsum(weights, axis=1, dtype=np.float64).astype(np.float32) - weights
            weights[before > np.float32(self.top_p)] = 0
            return _normalise(weights), order
        if self.top_k > 0:
            cut = weights.shape[1] - self.top_k
            threshold = np.partition(weights, cut, axis=1)[:, cut : cut + 1]
            weights[weights < threshold] = 0
            return _normalise(weights), None
        return weights, None

    def choose(self, logits: Float, draw: Draw, call: int) -> Tokens:
        """A token for each row of logits float32 [rows, n]: int64 [rows]. `call` counts the choices of a run."""
        if self.is_greedy:
            return _first_largest(logits)
        weights, tokens = self.weigh(logits)
        entries = draw(call, weights)
        return entries if tokens is None else np.take_along_axis(tokens, entries[:, None], axis=1)[:, 0]


def softmax(logits: Float) -> Float:
    """Of each row [rows, n], in the dtype of the logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return _normalise(powers)


def pick(weights: Float, uniform: NDArray[np.float64]) -> Tokens:
    """By uniform numbers u, float64 [rows] in [0, 1): how many of the cumulative sums of weights [rows, n] are at most u."""
    sums = np.cumsum(weights, axis=1, dtype=np.float64)
    sums /= sums[:, -1:]
    counts: Tokens = np.count_nonzero(sums <= uniform[:, None], axis=1)
    return counts


def race(weights: Float, arrivals: Float) -> Tokens:
    """By exponential numbers [rows, n]: the entry with the largest weight per number, as torch.multinomial takes one sample."""
    return _first_largest(weights / arrivals)


def _first_largest(values: Float) -> Tokens:
    places: Tokens = np.argmax(values, axis=1)
    return places


def _normalise(weights: Float) -> Float:
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _is_between(value: Any, low: float, high: float) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and low <= float(value) <= high
