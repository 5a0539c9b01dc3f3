"""Where the noise of a decode comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, VAE_CHANNELS
from musicrt.runtime.models.mucodec.lengths import SHARED, WINDOW, Span
from musicrt.runtime.noise import PlacedNoise, choose_seed, refuse_seed

Float = NDArray[np.float32]
Arrays = Sequence[NDArray[np.floating]]
"""Noise in the official order: with a prompt two arrays [1, 16, frames, 32], for its left and right; then one [1, 32, frames, 32] for
each window. What is drawn officially and has no effect is left out: the first latent, and the filler of every further window."""
_HOP = (WINDOW - SHARED) // 2  # latent frames between the starts of two windows


@runtime_checkable
class Noise(Protocol):
    """Gives the noise of one decode; asked in the official order, first for the prompt, then for window after window."""

    def posterior(self, channel: int, frames: int) -> Float:
        """For the prompt's latents of a channel, 0 or 1: float32 [16, frames, 32]."""
        ...

    def initial(self, window: int, frames: int) -> Draw:
        """What the sampling of a window starts from: a call 0 -> float32 [1, 32, frames, 32]."""
        ...


class SeededNoise:
    """Noise by position (`musicrt.runtime.noise`): windows agree where they overlap, and with fit="length" nothing is drawn otherwise."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: None takes a fresh one from the operating system. Raises InputError."""
        self.seed = choose_seed(seed)

    def posterior(self, channel: int, frames: int) -> Float:
        """See `Noise`."""
        drawn: Float = self._at(VAE_CHANNELS, frames, channel, 0)(1)[0]
        return drawn

    def initial(self, window: int, frames: int) -> PlacedNoise:
        """See `Noise`."""
        return self._at(LATENT_CHANNELS, frames, 0, window * _HOP)

    def _at(self, planes: int, frames: int, channel: int, start: int) -> PlacedNoise:
        return PlacedNoise(self.seed, ((channel, start),), (planes, frames, LATENT_BINS), frames_last=False)


class InjectedNoise:
    """Given arrays."""

    def __init__(self, arrays: Arrays, spans: Sequence[Span]) -> None:
        """For the windows of a decode. Raises InputError unless the arrays are those of `Arrays`, all of them finite."""
        if not isinstance(arrays, Sequence):
            raise InputError(f"got noise of type {type(arrays).__name__}, expected a list of arrays")
        prompt_frames = spans[0].known
        posterior = [(1, VAE_CHANNELS, prompt_frames, LATENT_BINS)] * (2 if prompt_frames else 0)
        expected = [*posterior, *((1, LATENT_CHANNELS, span.frames, LATENT_BINS) for span in spans)]
        if len(arrays) != len(expected):
            parts = f"{'two for the prompt, ' if prompt_frames else ''}one for each of {len(spans)} windows"
            raise InputError(f"got {len(arrays)} noise arrays, expected {len(expected)}: {parts}")
        for array, shape in zip(arrays, expected, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise InputError(f"got noise of type {getattr(array, 'dtype', type(array).__name__)}, expected arrays of float32")
            if array.shape != shape:
                raise InputError(f"got noise of shape {list(array.shape)}, expected {list(shape)}")
            if not np.isfinite(array).all():
                raise InputError("got noise with NaN or infinite values")
        self._posterior, self._initial = arrays[: len(posterior)], arrays[len(posterior) :]

    def posterior(self, channel: int, frames: int) -> Float:
        """See `Noise`."""
        del frames
        return np.asarray(self._posterior[channel][0], np.float32)

    def initial(self, window: int, frames: int) -> Draw:
        """See `Noise`."""
        del frames
        return lambda _index: np.asarray(self._initial[window], np.float32)


def choose_noise(seed: int | None, noise: Noise | Arrays | None, spans: Sequence[Span]) -> Noise:
    """The noise of a decode. Raises InputError: a seed and noise, or no noise that fits the windows."""
    if noise is None:
        return SeededNoise(seed)
    refuse_seed(seed)
    return noise if isinstance(noise, Noise) else InjectedNoise(noise, spans)
