"""The official way through the networks (SPEC sections 3 and 4): what is thrown away is computed, and nothing is kept from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mucodec.workload import TIME, Codes, Float, Part, Workload
from benchmarks.rounds import Outputs
from musicrt.runtime.models.mucodec.config import CODE_SAMPLES, Config
from musicrt.runtime.models.mucodec.downmix import JOINT_PEAK, limit, mix_down
from musicrt.runtime.models.mucodec.lengths import CHUNK, CHUNK_SHIFT, SPAN, WINDOW, encoded_codes, wave_samples
from musicrt.runtime.models.mucodec.mel import MuqMel

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "muq": (("mel",), ("hidden", "last")),
    "quantizer": (("hidden",), ("codes",)),
    "condition": (("codes",), ("condition",)),
    "estimator": (("channels", "timestep"), ("velocity",)),
    "vae": (("latents",), ("mel",)),
    "vocoder": (("mel",), ("waveform",)),
}
"""Inputs and outputs of the networks. hidden, last: behind the tapped layer and behind all of them."""
BATCH = 3
"""Windows that are encoded together."""


class Official(ABC):
    """A contender that follows the official code. The limiters, resampling and spectrogram are those of MusicRT."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = Config.from_mapping(config)
        statistics = self.config.muq_stat
        self.mel = MuqMel(statistics.melspec_2048_mean, statistics.melspec_2048_std)

    @abstractmethod
    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run one of PARTS on its inputs, in their order."""

    def encode(self, audio: Float) -> Codes:
        """Audio float32 [2, n] -> codes int64 [1, codebooks, C]: at least two windows, by threes (SPEC section 3)."""
        samples = audio.shape[1]
        count = official_windows(samples)
        looped = np.tile(limit(audio, np.abs(audio).max(keepdims=True), JOINT_PEAK), (1, -(-count * SPAN // samples)))
        windows = looped[:, : count * SPAN].reshape(2, count, SPAN).swapaxes(0, 1)
        codes = [self.encode_windows(windows[start : start + BATCH]) for start in range(0, count, BATCH)]
        return np.concatenate([one for batch in codes for one in batch], axis=1)[None, :, : encoded_codes(samples)]

    def encode_windows(self, windows: Float) -> Codes:
        """Windows float32 [batch, 2, 1966560] -> codes int64 [batch, codebooks, 1024]."""
        hidden = self.run("muq", self.mel.analyse(mix_down(windows)))["hidden"]
        return self.run("quantizer", hidden)["codes"]

    def vocode(self, mel: Float) -> Float:
        """Log-mel float32 [channels, M, 256] -> waves [channels, samples], by overlapping chunks (SPEC section 4.9)."""
        wave = self.run("vocoder", mel[:, :CHUNK])["waveform"]
        size = wave.shape[1] // 1024 * 1024
        fade = size * (CHUNK - CHUNK_SHIFT) // CHUNK
        wave, rise = wave[:, :size], np.linspace(0.0, 1.0, fade)
        for start in chunk_starts(mel.shape[1])[1:]:
            chunk = self.run("vocoder", mel[:, start : start + CHUNK])["waveform"][:, :size]
            mixed = wave[:, -fade:] * (1 - rise) + chunk[:, :fade] * rise
            wave = np.concatenate([wave[:, :-fade], mixed.astype(np.float32), chunk[:, fade:]], axis=1)
        return wave[:, : wave_samples(mel.shape[1])]

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """See `Contender`."""
        size = round(part.size)
        match part.kind:
            case "muq":
                heard = work.mel(size)
                return lambda: {"hidden": self.run("muq", heard)["hidden"]}
            case "encode":
                audio = work.audio(part.size)
                return lambda: {"codes": self.encode(audio)}
            case "prepare":
                codes = work.codes(size)
                return lambda: self.run("condition", codes)
            case "step":
                x, condition, known = work.signal(size)
                return lambda: {"velocity": self.run("estimator", *step_inputs(x, condition, known))["velocity"][::-1, None]}
            case "vae":
                latents = work.latents(size, part.channels)
                return lambda: self.run("vae", latents)
            case _:
                spectrogram = work.spectrogram(size, part.channels)
                return lambda: {"waveform": self.vocode(spectrogram)}


def step_inputs(x: Float, condition: Float, known: Float) -> tuple[Float, Float]:
    """What a step evaluates, both rows of guidance, the unconditional one first: channels float32 [2, 96, T, 32] and times [2]."""
    incontext = np.zeros_like(x)
    incontext[:, :, : known.shape[2]] = known
    rows = [np.concatenate([x, incontext, told], axis=1) for told in (np.zeros_like(condition), condition)]
    return np.concatenate(rows), np.full(2, TIME, np.float32)


def official_windows(samples: int) -> int:
    """Encoder windows that are computed for so many samples, two at least (SPEC section 3)."""
    while samples < SPAN:
        samples *= 2
    return samples // (WINDOW * CODE_SAMPLES) + 1


def chunk_starts(frames: int) -> list[int]:
    """Where the vocoder's chunks begin in so many mel frames; each has 1024 of them, the last one what is left."""
    return [0, *range(CHUNK_SHIFT, frames - CHUNK + CHUNK_SHIFT, CHUNK_SHIFT)]


def chunked_frames(frames: int) -> int:
    """Mel frames that the vocoder is officially run on, for so many: 13312 for 4096."""
    return sum(min(start + CHUNK, frames) - start for start in chunk_starts(frames))


def example_inputs(part: str, work: Workload) -> list[NDArray[Any]]:
    """Small inputs of one of PARTS, with a batch of two where there may be several."""
    match part:
        case "muq" | "quantizer":
            return list(work.feeds(part, codes=24, batch=2).values())
        case "condition":
            return [work.codes(12)]
        case "estimator":
            return list(step_inputs(*work.signal(12)))
        case "vae":
            return [work.latents(12, 2)]
        case _:
            return [work.spectrogram(3, 2)]
