"""A prompt: sound that comes before what is decoded, and is continued in its manner (SPEC section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import MEL_HOP, SAMPLE_RATE
from musicrt.runtime.models.mucodec.encoder import check_source
from musicrt.runtime.models.mucodec.mel import PromptMel
from musicrt.runtime.models.mucodec.noise import Noise
from musicrt.runtime.source import Audio, SampleReader, open_source

Float = NDArray[np.float32]

LONG = int(30.76 * SAMPLE_RATE)
"""Samples from which on a prompt is not taken from its beginning."""
_LATE = int(20.48 * SAMPLE_RATE)
_LENGTH = int(10.24 * SAMPLE_RATE)
_LEAST = 15 * MEL_HOP  # samples: 16 mel frames, which make two latent frames


@dataclass(frozen=True)
class Prompt:
    """What is taken of a prompt: float32 [2, samples] at 48 kHz, and how many latent frames and codes that is."""

    audio: Float

    @classmethod
    def read(cls, audio: Audio) -> Prompt:
        """From a path, a source or an array [samples] or [channels, samples] at 48 kHz.

        10.24 s: from 20.48 s on, if there are at least 30.76 s, else from the beginning. Raises AudioError, InputError: not mono
        or stereo, below 150 ms, all silence, or what `open_source` refuses.
        """
        source = check_source(open_source(audio, SAMPLE_RATE, kernel="sinc"))
        if source.samples < _LEAST:
            raise InputError(f"got a prompt of {source.samples} samples, expected at least {_LEAST} (150 ms at 48 kHz); 10.24 s are best")
        start = _LATE if source.samples >= LONG else 0
        samples = SampleReader(source).read(start, min(start + _LENGTH, source.samples))
        if not samples.any():
            raise InputError(f"got a prompt that is silent in the {samples.shape[1] / SAMPLE_RATE:.2f} s that are used; leave it out")
        return cls(np.repeat(samples, 2 // len(samples), axis=0))

    @property
    def frames(self) -> int:
        """Latent frames: 128 of 10.24 s."""
        return int(1 + self.audio.shape[1] // MEL_HOP) // 8

    @property
    def codes(self) -> int:
        """Codes that are put in front of the others; of no prompt are there fewer."""
        return 2 * self.frames


class PromptEncoder:
    """Makes latents of prompts, by the encoder of the VAE."""

    def __init__(self, model: Model) -> None:
        self._model, self._mel = model, PromptMel()

    def latents(self, prompt: Prompt, noise: Noise) -> Float:
        """Samples of the posterior, left and right: float32 [1, 32, frames, 32]. Raises BackendError."""
        mel = self._mel.analyse(prompt.audio)
        return np.concatenate([self._sample(one, noise.posterior(i, prompt.frames)) for i, one in enumerate(mel)], axis=1)

    def _sample(self, mel: Float, noise: Float) -> Float:
        posterior = self._model.session("vae-encoder").run({"mel": mel[None]})
        latents: Float = posterior["mean"] + posterior["deviation"] * noise
        return latents
