"""Where the noise of a decode comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE
from musicrt.runtime.noise import PlacedNoise, choose_seed, refuse_seed

Float = NDArray[np.float32]
Arrays = Sequence[NDArray[np.floating]] | NDArray[np.floating]
"""Noise float32 [rows, 8, 256, 16] in the official order: for each window the initial one, then one for every step."""
_HOP = LATENT_SHAPE[1] * 15 // 16  # latent frames between the starts of two windows (SPEC section 3.1)


class Place(NamedTuple):
    """An item of a batch: a row of the tokens in a window."""

    row: int
    window: int


@runtime_checkable
class Noise(Protocol):
    """Gives the noise of batches, in the order of the windows."""

    def at(self, places: Sequence[Place], draws: int) -> Draw:
        """A call k -> draw k, float32 [len(places), 8, 256, 16], for k below `draws`: 0 the initial noise, k that of step k of the loop."""
        ...


class SeededNoise:
    """Noise by position (`musicrt.runtime.noise`): a seed gives one result whatever the batches, and windows agree where they overlap."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed = choose_seed(seed)

    def at(self, places: Sequence[Place], draws: int) -> PlacedNoise:
        """See `Noise`."""
        del draws
        return PlacedNoise(self.seed, tuple((place.row, place.window * _HOP) for place in places), LATENT_SHAPE, frames_last=False)


class InjectedNoise:
    """Given arrays."""

    def __init__(self, arrays: Arrays) -> None:
        """Raises InputError for what is no list of arrays."""
        if not isinstance(arrays, Sequence | np.ndarray):
            raise InputError(f"got noise of type {type(arrays).__name__}, expected a list of arrays [rows, 8, 256, 16]")
        self._arrays = arrays

    def at(self, places: Sequence[Place], draws: int) -> Draw:
        """See `Noise`."""
        return lambda index: np.stack([self._arrays[place.window * draws + index][place.row] for place in places]).astype(np.float32)

    def check(self, rows: int, windows: int, draws: int) -> None:
        """Raises InputError unless there are `draws` arrays for each window, all with so many rows and finite."""
        if len(self._arrays) != windows * draws:
            raise InputError(f"got {len(self._arrays)} noise arrays, expected {windows * draws}: {draws} for each of {windows} windows")
        for array in self._arrays:
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise InputError(f"got noise of type {getattr(array, 'dtype', type(array).__name__)}, expected arrays of float32")
            if array.shape != (rows, *LATENT_SHAPE):
                raise InputError(f"got noise of shape {list(array.shape)}, expected {[rows, *LATENT_SHAPE]}")
            if not np.isfinite(array).all():
                raise InputError("got noise with NaN or infinite values")


def choose_noise(seed: int | None, noise: Noise | Arrays | None) -> Noise:
    """The noise of a decode. Raises InputError: a seed and noise, or something else than noise."""
    if noise is None:
        return SeededNoise(seed)
    refuse_seed(seed)
    return noise if isinstance(noise, Noise) else InjectedNoise(noise)
