"""From audio to latents, window by window (SPEC section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from musicrt.runtime.source import AudioSource, SampleReader
from musicrt.runtime.windows import Window

Float = NDArray[np.float32]
Encode = Callable[[Sequence[Float]], list[Float]]
"""Spectra [2, F, 8 l] of one length -> latents [64, l] of each, or features [8192, l]."""


class WindowEncoder:
    """Encodes windows, which know nothing of each other."""

    def __init__(self, model: Model, config: Config, spectrum: Spectrum) -> None:
        self._model, self._config, self._spectrum = model, config, spectrum

    def plan(self, signal: int, source: AudioSource, length: int, windows: list[Window]) -> Iterator[Job]:
        """The spectra of a source's windows as jobs; one that runs past its `length` latents goes on with the beginning (SPEC 9.4)."""
        hop, rate = self._config.hop, self._config.frames_per_latent
        reader, head = SampleReader(source), None
        for window in windows:
            if window.dropped:
                continue
            inside = min(window.stop, length) - window.start
            samples = reader.read(window.start * rate * hop, ((window.start + inside) * rate + 3) * hop)
            spectrum = self._spectrum.analyse(samples)
            head = spectrum if head is None else head
            if inside < window.size:
                spectrum = np.concatenate([spectrum, head[..., : (window.size - inside) * rate]], axis=-1)
            for channel in range(source.channels):
                yield Job(signal, channel, window, spectrum[channel])

    def prepare(self, *, features: bool) -> Encode:
        """Open the stage. Raises BackendError, and so does what it gives."""
        session, name = self._model.session("encoder"), "features" if features else "latents"

        def encode(spectra: Sequence[Float]) -> list[Float]:
            values = session.run({"representation": np.stack(spectra)}, [name])[name]
            return list(values if features else values / np.float32(self._config.sigma_rescale))

        return encode
