"""From tokens to audio, window by window: features for the sampler, waveforms of its latents, and their cross-fades (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import HOP, Config
from musicrt.runtime.models.semanticodec.lengths import WINDOW_SAMPLES, decode_windows, decoded_samples, token_windows
from musicrt.runtime.windows import Window, inclusive_ramp, join_windows

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]
_VOCODER_MARGIN = 32  # frames; a sample depends on 23 frames after its own


class WindowDecoder:
    """What comes before and after the sampler, which makes a latent of each window."""

    def __init__(self, model: Model, config: Config) -> None:
        self._model, self._config = model, config

    def plan(self, signal: int, tokens: Tokens, windows: list[Window]) -> Iterator[Job]:
        """The features of a signal's windows as jobs; those of missing tokens are -1 (SPEC section 3.2)."""
        spans = token_windows(tokens.shape[1], self._config.stack)
        for (start, stop), window in zip(spans, windows, strict=True):
            known = np.concatenate([self.embed(row[None, start:stop]) for row in tokens])
            feature = np.full((len(tokens), self._config.tokens, known.shape[-1]), -1.0, np.float32)
            feature[:, : stop - start] = known
            for row in range(len(tokens)):
                yield Job(signal, row, window, feature[row])

    def embed(self, tokens: Tokens) -> Float:
        """Tokens [batch, n, 2] -> their code vectors float32 [batch, n, 2D], the acoustic one first. Raises BackendError."""
        semantic, acoustic = np.ascontiguousarray(tokens.transpose(2, 0, 1))
        return self._model.session("embedding").run({"semantic": semantic, "acoustic": acoustic})["feature"]

    def synthesise(self, latent: Float, samples: int = WINDOW_SAMPLES) -> Float:
        """Latent [8, 256, 16] -> the first samples of its window; the vocoder sees what these depend on. Raises BackendError."""
        mel = self._model.session("vae").run({"latent": latent[None]})["mel"]
        frames = -(-samples // HOP) + _VOCODER_MARGIN
        return self._model.session("vocoder").run({"mel": mel[:, :frames]})["waveform"][0, :samples]

    def join(self, waveforms: Iterable[tuple[Window, Float]], tokens: int) -> Iterator[Float]:
        """Cross-fade windows [batch, samples], and cut what so many tokens do not reach (SPEC section 3.7): blocks [batch, samples]."""
        left, stop = decoded_samples(tokens, self._config.stack), decode_windows(tokens, self._config.stack)[-1].stop
        for block in join_windows(waveforms, stop, ramp=inclusive_ramp):
            yield block[:, :left]
            left = max(left - block.shape[1], 0)
