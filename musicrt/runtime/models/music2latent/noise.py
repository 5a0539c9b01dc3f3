"""Where the noise of a decode comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.noise import choose_seed, normal_columns

Float = NDArray[np.float32]


class Place(NamedTuple):
    """Which noise an item of a batch needs: that of `channel`, from `frame` on."""

    channel: int
    frame: int


class Noise(Protocol):
    """Gives the noise of a batch: one call for the initial noise, one after each step.

    `sequential`: every call gives other numbers, so the official order of calls is kept, in which noise is drawn after the
    last step and for windows of which nothing is kept, too.
    """

    sequential: bool

    def draw(self, places: Sequence[Place], draw: int, shape: tuple[int, int, int]) -> Float:
        """Standard normal float32 [len(places), *shape] with shape = (2, F, T)."""
        ...


class SeededNoise:
    """Noise by position (`musicrt.runtime.noise`): a seed gives one result whatever the batches, and one noise whatever the windows."""

    sequential = False

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed = choose_seed(seed)

    def draw(self, places: Sequence[Place], draw: int, shape: tuple[int, int, int]) -> Float:
        """See `Noise`."""
        planes, bins, frames = shape
        columns = [
            normal_columns(self.seed, planes * bins, range(place.frame, place.frame + frames), channel=place.channel, draw=draw)
            for place in places
        ]
        return np.stack(columns).reshape(len(places), *shape)


class InjectedNoise:
    """Given arrays, in the order of the official draws: for each batch the initial noise, then one after every step."""

    sequential = True

    def __init__(self, arrays: Sequence[Float]) -> None:
        self._arrays = iter(arrays)

    def draw(self, places: Sequence[Place], draw: int, shape: tuple[int, int, int]) -> Float:
        """See `Noise`. Raises InputError when the arrays run out or have another shape."""
        expected = (len(places), *shape)
        array = next(self._arrays, None)
        if array is None:
            raise InputError(f"too few noise arrays: draw {draw} of a batch needs one of shape {list(expected)}")
        if np.shape(array) != expected:
            raise InputError(f"got noise of shape {list(np.shape(array))}, expected {list(expected)} for draw {draw} of a batch")
        if not np.isfinite(array).all():
            raise InputError(f"got noise with NaN or infinite values for draw {draw} of a batch")
        return np.asarray(array, np.float32)
