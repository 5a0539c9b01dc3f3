"""Where the noise of a decode comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.noise import PlacedNoise, choose_seed, refuse_seed

Float = NDArray[np.float32]


class Place(NamedTuple):
    """Which noise an item of a batch needs: that of `channel`, from `frame` on."""

    channel: int
    frame: int


@runtime_checkable
class Noise(Protocol):
    """Gives the noise of batches: of each the initial noise, then that of each step.

    `sequential`: every call gives other numbers, so the official order of calls is kept, in which noise is drawn after the
    last step and for windows of which nothing is kept, too.
    """

    sequential: bool

    def at(self, places: Sequence[Place], shape: tuple[int, int, int]) -> Draw:
        """A call k -> draw k of a batch, standard normal float32 [len(places), *shape] with shape = (2, F, T)."""
        ...


class SeededNoise:
    """Noise by position (`musicrt.runtime.noise`): a seed gives one result whatever the batches, and one noise whatever the windows."""

    sequential = False

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed = choose_seed(seed)

    def at(self, places: Sequence[Place], shape: tuple[int, int, int]) -> PlacedNoise:
        """See `Noise`."""
        return PlacedNoise(self.seed, tuple(places), shape)


class InjectedNoise:
    """Given arrays, in the order of the official draws: for each batch the initial noise, then one after every step."""

    sequential = True

    def __init__(self, arrays: Sequence[Float]) -> None:
        """Raises InputError for what is no list of arrays."""
        if not isinstance(arrays, Sequence | np.ndarray):
            raise InputError(f"got noise of type {type(arrays).__name__}, expected a list of arrays [batch, 2, F, T]")
        self._arrays = iter(arrays)

    def at(self, places: Sequence[Place], shape: tuple[int, int, int]) -> Draw:
        """See `Noise`. The draws raise InputError when the arrays run out or have another shape."""
        expected = (len(places), *shape)

        def draw(index: int) -> Float:
            array = next(self._arrays, None)
            if array is None:
                raise InputError(f"too few noise arrays: draw {index} of a batch needs one of shape {list(expected)}")
            if np.shape(array) != expected:
                raise InputError(f"got noise of shape {list(np.shape(array))}, expected {list(expected)} for draw {index} of a batch")
            if not np.isfinite(array).all():
                raise InputError(f"got noise with NaN or infinite values for draw {index} of a batch")
            return np.asarray(array, np.float32)

        return draw


def choose_noise(seed: int | None, noise: Noise | Sequence[Float] | None) -> Noise:
    """The noise of a decode. Raises InputError: a seed and noise, or something else than noise."""
    if noise is None:
        return SeededNoise(seed)
    refuse_seed(seed)
    return noise if isinstance(noise, Noise) else InjectedNoise(noise)
