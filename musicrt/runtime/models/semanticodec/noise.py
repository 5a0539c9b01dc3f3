"""Where the noise of a decode comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE
from musicrt.runtime.noise import choose_seed, normal_columns

Float = NDArray[np.float32]
Arrays = Sequence[NDArray[np.floating]] | NDArray[np.floating]
"""Noise float32 [rows, 8, 256, 16] in the official order: for each window the initial one, then one for every step."""
_HOP = LATENT_SHAPE[1] * 15 // 16  # latent frames between the starts of two windows (SPEC section 3.1)


class Noise(Protocol):
    """Gives the noise of one row of one window, in the order of the windows."""

    def window(self, row: int, window: int, draws: int) -> Callable[[int], Float]:
        """A call k -> draw k, float32 [8, 256, 16], for k below `draws`: 0 the initial noise, k that of step k of the loop."""
        ...


class SeededNoise:
    """Noise by position (`musicrt.runtime.noise`): a seed gives one result whatever the batches, and windows agree where they overlap."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed = choose_seed(seed)

    def window(self, row: int, window: int, draws: int) -> Callable[[int], Float]:
        """See `Noise`."""
        del draws
        channels, frames, bins = LATENT_SHAPE
        start = window * _HOP

        def draw(index: int) -> Float:
            columns = normal_columns(self.seed, channels * bins, range(start, start + frames), channel=row, draw=index)
            return np.ascontiguousarray(columns.reshape(channels, bins, frames).transpose(0, 2, 1))

        return draw


class InjectedNoise:
    """Given arrays."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def window(self, row: int, window: int, draws: int) -> Callable[[int], Float]:
        """See `Noise`."""
        return lambda index: np.asarray(self._arrays[window * draws + index][row], np.float32)

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
