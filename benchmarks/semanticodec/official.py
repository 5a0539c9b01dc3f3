"""The official way through the networks: one segment and one window after the other, and nothing kept from one step to the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Outputs
from benchmarks.semanticodec.workload import GUIDANCE, STAGES, TIMESTEP, Float, Tokens, Workload
from musicrt.runtime.loops import ddim
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.diffusion import alphas_cumprod
from musicrt.runtime.models.semanticodec.config import HOP, LATENT_SHAPE, POSITION_CHANNELS, Config
from musicrt.runtime.models.semanticodec.fbank import FRAME, FilterBank
from musicrt.runtime.models.semanticodec.lengths import (
    SEGMENT,
    WINDOW_SAMPLES,
    decode_windows,
    decoded_samples,
    encoded_tokens,
    padding_cut,
    segment_count,
    token_windows,
)
from musicrt.runtime.windows import Window, inclusive_ramp, join_windows

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "audiomae": (("mel",), ("representation",)),
    "semantic": (("representation",), ("semantic", "centroids")),
    "residual": (("representation", "centroids", "mask"), ("residual",)),
    "acoustic": (("residual",), ("acoustic",)),
    "embedding": (("semantic", "acoustic"), ("feature",)),
    "unet": (("x", "t", "context"), ("v",)),
    "vae": (("latent",), ("mel",)),
    "vocoder": (("mel",), ("waveform",)),
}
"""Inputs and outputs of the networks, which are called with a batch of 1."""


class Official(ABC):
    """A contender that follows the official code (SPEC sections 2 and 3). The front-end and the sums of DDIM are those of MusicRT."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = Config.from_mapping(config)
        self.filter_bank = FilterBank()

    @abstractmethod
    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run one of PARTS on its inputs, in their order."""

    def encode(self, audio: Float) -> Tokens:
        """Audio float32 [1, n] -> tokens int64 [1, T, 2]."""
        samples = audio.shape[1]
        segments = segment_count(samples)
        padded = np.pad(audio, ((0, 0), (0, segments * SEGMENT - samples)))
        mel = [self.filter_bank.analyse_segment(padded[:, i * SEGMENT : (i + 1) * SEGMENT + FRAME - HOP]) for i in range(segments)]
        tokens = [self.encode_segment(one) for one in mel]
        return np.concatenate(tokens, axis=1)[:, : encoded_tokens(samples, self.config.stack)]

    def encode_segment(self, mel: Float) -> Tokens:
        """Mel spectrogram float32 [1, 1024, 128] -> tokens int64 [1, T, 2]."""
        active = math.ceil(self.config.tokens * padding_cut(mel[0]))
        mask = (np.arange(self.config.tokens) < active).astype(np.float32)[None]
        representation = self.run("audiomae", mel)["representation"]
        semantic = self.run("semantic", representation)
        residual = self.run("residual", representation, semantic["centroids"], mask)["residual"]
        return np.stack([semantic["semantic"], self.run("acoustic", residual)["acoustic"]], axis=-1)

    def decode(self, tokens: Tokens, steps: int, noise: Sequence[Float] | None = None) -> Float:
        """Tokens int64 [1, T, 2] -> audio [1, n]; without `noise` numpy's generator."""
        config = self.config
        schedule = DdimSchedule.build(steps, 1.0, alphas_cumprod(config.decoder.linear_start, config.decoder.linear_end, 1000))
        draws = iter(noise) if noise is not None else draw_noise()
        plan = decode_windows(tokens.shape[1], config.stack)
        joined = join_windows(self._windows(tokens, plan, schedule, draws), plan[-1].stop, ramp=inclusive_ramp)
        return np.concatenate(list(joined), axis=-1)[:, : decoded_samples(tokens.shape[1], config.stack)]

    def _windows(
        self, tokens: Tokens, plan: Sequence[Window], schedule: DdimSchedule, draws: Iterator[Float]
    ) -> Iterator[tuple[Window, Float]]:
        for window, (start, stop) in zip(plan, token_windows(tokens.shape[1], self.config.stack), strict=True):
            evaluate = self._evaluator(self.feature(tokens[:, start:stop]), schedule)
            latent = ddim.sample(schedule, evaluate, lambda _: next(draws), lambda: None, GUIDANCE)
            waveform = self.run("vocoder", self.run("vae", latent)["mel"])["waveform"]
            yield Window(window.start, window.start + WINDOW_SAMPLES, window.fade), waveform[:, : window.size]

    def feature(self, tokens: Tokens) -> Float:
        """Tokens [1, n, 2] of a window -> their code vectors, then -1: float32 [1, T, 2D]."""
        semantic, acoustic = np.ascontiguousarray(np.moveaxis(tokens, -1, 0))
        feature = np.full((1, self.config.tokens, 2 * self.config.feature_dim), -1.0, np.float32)
        feature[:, : tokens.shape[1]] = self.run("embedding", semantic, acoustic)["feature"]
        return feature

    def _evaluator(self, feature: Float, schedule: DdimSchedule) -> Callable[[int, Float, Float], None]:
        contexts = [add_positions(feature), add_positions(np.zeros_like(feature))]

        def evaluate(index: int, x: Float, out: Float) -> None:
            for row, context in enumerate(contexts):
                out[row] = self.run("unet", x, schedule.timesteps[index : index + 1], context)["v"]

        return evaluate

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`. The conditioning is a part of every evaluation."""
        inputs = {part: example_inputs(part, work) for part in PARTS if part in STAGES}
        x, t, _ = example_inputs("unet", work)
        contexts, segment, noise = example_contexts(work), work.segment, draw_noise()

        def evaluate() -> Outputs:
            return {"v": np.stack([self.run("unet", x, t, context)["v"] for context in contexts])}

        def caller(part: str) -> Callable[[], Outputs]:
            return lambda: self.run(part, *inputs[part])

        return {
            "front-end": lambda: {"mel": self.filter_bank.analyse_segment(segment)},
            "noise": lambda: {"noise": next(noise)},
            "evaluation": evaluate,
            **{part: caller(part) for part in inputs},
        }


def example_inputs(part: str, work: Workload) -> list[NDArray[Any]]:
    """Inputs of one of PARTS."""
    if part == "unet":
        return [work.feeds("denoiser")["x"], np.array([TIMESTEP]), example_contexts(work)[0]]
    return list(work.feeds(part).values())


def example_contexts(work: Workload) -> list[Float]:
    """Contexts of both rows of guidance, the one with tokens first: float32 [1, T, 2D + 192]."""
    feature = work.feeds("conditioning")["feature"]
    return [add_positions(feature), add_positions(np.zeros_like(feature))]


def add_positions(feature: Float) -> Float:
    """A feature float32 [1, T, 2D] and the positional code: [1, T, 2D + 192]."""
    return np.concatenate([feature, position_code(feature.shape[1])], axis=2)


def draw_noise() -> Iterator[Float]:
    """Without end: float32 [1, 8, 256, 16]."""
    generator = np.random.default_rng()
    while True:
        yield generator.standard_normal((1, *LATENT_SHAPE), np.float32)


def position_code(tokens: int) -> Float:
    """Sines and cosines of the positions, interleaved: float32 [1, tokens, 192] (SPEC section 3.2)."""
    rates = np.exp(np.arange(0, POSITION_CHANNELS, 2) * (-math.log(10000.0) / POSITION_CHANNELS))
    angles = np.arange(tokens)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(1, tokens, POSITION_CHANNELS).astype(np.float32)
