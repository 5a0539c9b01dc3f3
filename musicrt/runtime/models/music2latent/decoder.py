"""From latents to audio, window by window: spectra, and the one inverse transform that runs through them all (SPEC section 10)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.noise import Noise, Place
from musicrt.runtime.models.music2latent.sampler import Sample
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from musicrt.runtime.models.music2latent.windows import GUARD
from musicrt.runtime.progress import Tally
from musicrt.runtime.windows import Window, join_windows

Float = NDArray[np.float32]


class WindowDecoder:
    """Decodes windows."""

    def __init__(self, config: Config, spectrum: Spectrum) -> None:
        self._config, self._spectrum = config, spectrum

    def check(self, latents: object) -> Float:
        """Latents of one signal as float32 [channels, 64, L]. Raises InputError."""
        width = self._config.bottleneck_channels
        expected = f"expected finite float latents [channels, {width}, L] or [{width}, L] with L from 1 on, as `encode` gives"
        if not isinstance(latents, np.ndarray):
            raise InputError(f"got a {type(latents).__name__}, {expected}")
        signal = latents[None] if latents.ndim == 2 else latents
        if signal.ndim != 3 or signal.shape[1] != width or 0 in signal.shape or not np.issubdtype(signal.dtype, np.floating):
            hint = "; features can't be decoded" if signal.ndim == 3 and signal.shape[1] == self._config.feature_channels else ""
            raise InputError(f"got {latents.dtype} {list(latents.shape)}, {expected}{hint}")
        with np.errstate(over="ignore"):
            checked: Float = signal.astype(np.float32, copy=False)
        if not np.isfinite(checked).all():
            raise InputError(f"got {np.count_nonzero(~np.isfinite(checked))} NaN or infinite values, {expected}")
        return checked

    def plan(self, signal: int, latents: Float, windows: list[Window]) -> Iterator[Job]:
        """The latents of a signal's windows as jobs; one that runs past the end goes on with the beginning (SPEC section 10.2)."""
        for window in windows:
            data = np.take(latents, np.arange(window.start, window.stop), axis=-1, mode="wrap")
            for channel in range(len(latents)):
                yield Job(signal, channel, window, data[channel])

    def decode(self, jobs: list[Job], sample: Sample, noise: Noise, tally: Tally) -> list[Float | None]:
        """A batch of latents [64, l] -> spectra [2, F, 8 l]; None where nothing of the window is kept. Raises InputError, BackendError."""
        kept = np.array([not job.window.dropped for job in jobs])
        draw, spectra = self._draw(jobs, kept, noise), iter(list[Float]())
        if kept.any():
            latents = np.stack([job.data for job in jobs])[kept] * np.float32(self._config.sigma_rescale)
            spectra = iter(sample.run(latents, draw, partial(tally.add, int(kept.sum()))))
        if noise.sequential:
            for index in range(sample.steps if kept.any() else 0, sample.steps + 1):
                draw(index)
        return [next(spectra) if keep else None for keep in kept]

    def join(self, spectra: Iterator[tuple[Window, Float]], length: int) -> Iterator[Float]:
        """Spectra [channels, 2, F, 8 l] of the windows of so many latents -> blocks of audio [channels, n] in [-1, 1].

        Overlap-add runs across the borders of windows (SPEC section 10.4).
        """
        rate, hop = self._config.frames_per_latent, self._config.hop
        carry: Float | None = None
        for spectrum in join_windows(spectra, length, scale=rate, guard=GUARD):
            audio = self._spectrum.overlap_add(self._spectrum.synthesise_frames(spectrum))
            if carry is not None:
                audio[:, : 3 * hop] += carry
            carry = audio[:, -3 * hop :]
            yield np.clip(audio[:, : -3 * hop], -1.0, 1.0)
        if carry is not None:
            yield np.clip(carry, -1.0, 1.0)

    def _draw(self, jobs: list[Job], kept: NDArray[np.bool_], noise: Noise) -> Draw:
        """The noise of those that are kept; where the order of draws counts, drawn for all."""
        rate = self._config.frames_per_latent
        shape = (2, self._config.bins, jobs[0].data.shape[-1] * rate)
        places = [Place(job.channel, job.window.start * rate) for job in jobs]
        if not noise.sequential:
            return noise.at([place for place, keep in zip(places, kept, strict=True) if keep], shape)
        whole = noise.at(places, shape)
        return whole if kept.all() else lambda index: whole(index)[kept]
