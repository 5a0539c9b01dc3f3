"""The random numbers by which tokens are drawn (SPEC section 7). Draws are counted over a whole run, one for each column of each window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.sampling import Draws, Float, Tokens, pick
from musicrt.runtime.noise import choose_seed, refuse_seed, uniform_numbers

Uniforms = Sequence[NDArray[np.floating]]
"""One array for each draw of a run: uniform numbers in [0, 1) for the rows, in the order video, codebook; float [videos * codebooks]."""


@runtime_checkable
class Numbers(Protocol):
    """Draws the tokens of one run."""

    def begin(self) -> None:
        """Called before each window."""
        ...

    def draw(self, call: int, weights: Float) -> Tokens:
        """See `musicrt.runtime.loops.sampling.Draw`; rows in the order video, codebook."""
        ...


@runtime_checkable
class UniformNumbers(Numbers, Protocol):
    """Numbers that are known before the run, so that tokens may be drawn where the logits are."""

    @property
    def draws(self) -> Draws: ...


class SeededNumbers:
    """A pure function of seed, draw and codebook: what is made of a video depends neither on the machine nor on the batch it is in."""

    def __init__(self, codebooks: int, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed, self._codebooks = choose_seed(seed), codebooks

    @property
    def draws(self) -> Draws:
        """See `UniformNumbers`."""
        return Draws(seed=self.seed)

    def begin(self) -> None:
        """See `Numbers`."""
        return

    def draw(self, call: int, weights: Float) -> Tokens:
        """See `Numbers`."""
        return pick(weights, np.tile(uniform_numbers(self.seed, self._codebooks, draw=call), len(weights) // self._codebooks))


class InjectedNumbers:
    """Given uniform numbers."""

    def __init__(self, arrays: Uniforms, draws: int, rows: int) -> None:
        """Raises InputError unless there are so many arrays [rows] of numbers in [0, 1)."""
        if not isinstance(arrays, Sequence | np.ndarray) or isinstance(arrays, str):
            raise InputError(f"got noise of type {type(arrays).__name__}, expected a list of arrays, one for each of {draws} draws")
        if len(arrays) != draws:
            raise InputError(f"got noise for {len(arrays)} draws, expected {draws}: one array for each column of each window")
        self._arrays = [_check(array, rows) for array in arrays]

    @property
    def draws(self) -> Draws:
        """See `UniformNumbers`."""
        return Draws(given=self._arrays)

    def begin(self) -> None:
        """See `Numbers`."""
        return

    def of(self, call: int) -> NDArray[np.float64]:
        """The numbers of a draw."""
        return self._arrays[call]

    def draw(self, call: int, weights: Float) -> Tokens:
        """See `Numbers`."""
        return pick(weights, self.of(call))


def choose_numbers(seed: int | None, noise: Numbers | Uniforms | None, draws: int, videos: int, codebooks: int) -> Numbers:
    """The numbers of a run. Raises InputError: a seed and noise, or no noise that fits."""
    if noise is None:
        return SeededNumbers(codebooks, seed)
    refuse_seed(seed)
    return noise if isinstance(noise, Numbers) else InjectedNumbers(noise, draws, videos * codebooks)


def _check(array: Any, rows: int) -> NDArray[np.float64]:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise InputError(f"got noise of type {getattr(array, 'dtype', type(array).__name__)}, expected arrays of floats")
    if array.shape != (rows,):
        raise InputError(f"got noise of shape {list(array.shape)}, expected [{rows}]: videos times codebooks")
    if not ((array >= 0) & (array < 1)).all():
        raise InputError("got noise outside of [0, 1); expected uniform numbers")
    return array.astype(np.float64)
