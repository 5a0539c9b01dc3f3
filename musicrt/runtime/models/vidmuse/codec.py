"""EnCodec in terms of sessions (SPEC section 9): encoding a whole signal, decoding any length piece by piece.

Decoding in pieces is exact. The first convolution sees three latents on either side, which are true neighbours within the signal and made
up at its ends; the LSTM goes on from its state; and what follows it sees less than two frames on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.codes import check_range, read_codes
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.delays import Tokens
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.config import HOP, SAMPLE_RATE, Config
from musicrt.runtime.models.vidmuse.spec import BATCH, SAMPLES
from musicrt.runtime.source import AudioSource

Float = NDArray[np.float32]
EDGE = 3
"""Latents that the first convolution sees on either side."""
MARGIN = 2
"""Frames of features on either side that a frame's samples depend on."""
BLOCK = 250
"""Frames that are decoded together: 5 s."""
_QUANTISED = 4096


class AudioCodec:
    """Runs the stages of the codec. Codes: int64 [batch, codebooks, T], audio: float32 [batch, samples], 640 for each code."""

    def __init__(self, model: Model, config: Config) -> None:
        self._model, self._config = model, config

    def check(self, codes: NDArray[Any]) -> Tokens:
        """Codes as int64 [batch, codebooks, n]. Raises InputError."""
        expected = f"[batch, {self._config.codebooks}, n]"
        array = read_codes(codes, expected, "decode them one by one")
        if array.ndim != 3 or array.shape[1] != self._config.codebooks or array.size == 0:
            raise InputError(f"got codes of shape {list(np.shape(codes))}, expected {expected}")
        if len(array) > BATCH.maximum:
            raise InputError(f"got codes of {len(array)} signals, expected up to {BATCH.maximum}; decode them in parts")
        check_range(array, self._config.card)
        return array.astype(np.int64)

    @property
    def sample_rate(self) -> int:
        return self._config.sample_rate

    def no_codes(self) -> Tokens:
        """Those of no time, int64 [1, codebooks, 0]."""
        return np.zeros((1, self._config.codebooks, 0), np.int64)

    def read(self, source: AudioSource) -> Float:
        """The mean of a source's channels, float32 [1, samples]. Raises AudioError, and InputError for too little or too much."""
        if not source.samples:
            raise InputError(f"{source.name} holds no samples; expected at least one")
        if source.samples > SAMPLES.maximum:
            seconds = SAMPLES.maximum // SAMPLE_RATE
            raise InputError(f"{source.name} has {source.samples / SAMPLE_RATE:.1f} s of audio, expected up to {seconds} s; cut it")
        return np.concatenate([block.mean(axis=0, keepdims=True) for block in source.open()], axis=1)

    def encode(self, audio: Float) -> Tokens:
        """Audio [batch, samples] -> codes, one for each 640 samples that are begun. Raises BackendError."""
        embedding = self._model.session("codec-encoder").run({"audio": np.ascontiguousarray(audio[:, None])})["embedding"]
        quantizer = self._model.session("quantizer")
        most = min(_QUANTISED, quantizer.limits["codes"][1])
        parts = [np.ascontiguousarray(embedding[:, :, start : start + most]) for start in range(0, embedding.shape[2], most)]
        return np.concatenate([quantizer.run({"embedding": part})["codes"] for part in parts], axis=2)

    def dequantize(self, codes: Tokens) -> Float:
        """What codes stand for, float32 [batch, latent channels, T]. Raises BackendError."""
        return self._model.session("dequantizer").run({"codes": np.ascontiguousarray(codes)})["latent"]

    def decode(self, codes: Tokens) -> Iterator[Float]:
        """Decode in constant memory; blocks of audio. Raises BackendError."""
        decoder = self.open(len(codes))
        for start in range(0, codes.shape[2], BLOCK):
            yield decoder.push(codes[:, :, start : start + BLOCK])
        yield decoder.finish()

    def open(self, batch: int) -> Decoder:
        """A decoder of one signal of so many rows."""
        return Decoder(self, self._model, self._config, batch)


class Decoder:
    """Takes codes piece by piece, and gives the audio that they settle: all but that of the last five frames."""

    def __init__(self, codec: AudioCodec, model: Model, config: Config, batch: int) -> None:
        self._codec, self._model, self._pad_mode = codec, model, config.pad_mode
        self._latents = np.zeros((batch, config.latent_channels, 0), np.float32)  # from three before the next frame of features on
        self._features = np.zeros((batch, config.recurrent_channels, 0), np.float32)  # from two before the next frame of audio on
        self._margin = 0  # frames at the beginning of these whose audio is out already
        self._begun = False
        state = (config.recurrent_layers, batch, config.recurrent_channels)
        self._state = {"h": np.zeros(state, np.float32), "c": np.zeros(state, np.float32)}

    def push(self, codes: Tokens) -> Float:
        """Codes [batch, codebooks, n] -> the next audio [batch, samples], perhaps none. Raises BackendError."""
        most = self._most
        return np.concatenate([self._push(codes[:, :, at : at + most]) for at in range(0, max(codes.shape[2], 1), most)], axis=1)

    @property
    def _most(self) -> int:
        """Codes that the sessions take at once: an engine is made for fewer than a long prompt has."""
        limits = {name: self._model.session(name).limits["codes"][1] for name in ("dequantizer", "recurrence", "synthesis")}
        return min(limits["dequantizer"], limits["recurrence"], limits["synthesis"] - 2 * MARGIN)

    def _push(self, codes: Tokens) -> Float:
        if codes.shape[2]:
            self._latents = np.concatenate([self._latents, self._codec.dequantize(codes)], axis=2)
        if not self._begun and self._latents.shape[2] > EDGE:
            self._begun = True
            self._latents = np.concatenate([pad_ends(self._latents, self._pad_mode)[:, :, :EDGE], self._latents], axis=2)
        if self._begun:
            self._recur()
        return self._render(last=False)

    def finish(self) -> Float:
        """The rest of the audio [batch, samples]; the decoder must not be used after that. Raises BackendError."""
        if self._begun:
            self._latents = np.concatenate([self._latents, pad_ends(self._latents, self._pad_mode)[:, :, -EDGE:]], axis=2)
        elif self._latents.shape[2]:
            self._latents = pad_ends(self._latents, self._pad_mode)
        self._recur()
        return self._render(last=True)

    def _recur(self) -> None:
        """Features of all latents whose neighbours are there."""
        if self._latents.shape[2] <= 2 * EDGE:
            return
        made = self._model.session("recurrence").run({"latent": np.ascontiguousarray(self._latents), **self._state})
        self._latents = self._latents[:, :, -2 * EDGE :]
        self._state = {"h": made["next_h"], "c": made["next_c"]}
        self._features = np.concatenate([self._features, made["features"]], axis=2)

    def _render(self, last: bool) -> Float:
        """The audio of all features whose neighbours are there."""
        held = self._features.shape[2]
        stop = held if last else held - MARGIN
        if stop <= self._margin:
            return np.zeros((len(self._features), 0), np.float32)
        audio = self._model.session("synthesis").run({"features": np.ascontiguousarray(self._features)})["audio"][:, 0]
        audio = audio[:, self._margin * HOP : stop * HOP]
        kept = min(stop, MARGIN)
        self._features, self._margin = self._features[:, :, stop - kept :], kept
        return audio


def pad_ends(latents: Float, mode: Literal["reflect", "constant"]) -> Float:
    """Latents [batch, channels, T] with three more on either side, as the convolution sees the ends of a signal (SPEC section 9)."""
    sides = ((0, 0), (0, 0), (EDGE, EDGE))
    if mode == "constant":
        return np.pad(latents, sides)
    extra = max(EDGE - latents.shape[2] + 1, 0)
    padded = np.pad(np.pad(latents, ((0, 0), (0, 0), (0, extra))), sides, mode="reflect")
    return padded[:, :, : padded.shape[2] - extra]
