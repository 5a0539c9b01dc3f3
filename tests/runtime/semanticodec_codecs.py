"""Pipelines of SemantiCodec for tests: the tiny network, and cheap functions in the place of its heavy stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE
from musicrt.runtime.models.semanticodec.noise import Place, SeededNoise
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from musicrt.runtime.session import Array
from tests.reference import signals

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]
Stage = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def open_tiny(checkpoint: Path) -> Pipeline:
    """The tiny network of a checkpoint folder, in PyTorch."""
    config = json.loads((checkpoint / "config.json").read_text())
    return Pipeline(Model.open_checkpoint("semanticodec", checkpoint, config))


def rewire(codec: Pipeline, **stages: Stage) -> tuple[Pipeline, dict[str, FakeSession]]:
    """The same pipeline with `stages` in place of its own, and the sessions, which record every call."""
    model = codec.model
    sessions = {stage.name: FakeSession(stage, stages.get(stage.name, model.session(stage.name).run)) for stage in model.spec.stages}
    return Pipeline(Model(model.spec, sessions.__getitem__, model.backend)), sessions


def light_denoiser(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Depends on all that the denoiser is given, item by item."""
    told = feeds["shift"].mean(axis=1)
    for name in (name for name in feeds if name.startswith(("key", "value"))):
        told = told + feeds[name].reshape(*feeds[name].shape[:2], -1).mean(axis=2)
    return {"v": 0.3 * feeds["x"] + np.sin(told)[..., None, None, None]}


def light_vae(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A spectrogram of which each frame comes from one frame of the latent."""
    frames = np.tensordot(feeds["latent"], np.cos(np.arange(8)).astype(np.float32), (1, 0))
    return {"mel": np.tile(np.repeat(frames, 4, axis=1), 4)}


def light_vocoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Each frame as 160 equal samples, and 32 more of the last one."""
    levels = feeds["mel"] @ np.cos(np.arange(64)).astype(np.float32)
    return {"waveform": np.pad(np.repeat(np.arctan(levels) / 2, 160, axis=1), ((0, 0), (0, 32)), mode="edge")}


def lighten(codec: Pipeline) -> tuple[Pipeline, dict[str, FakeSession]]:
    """A pipeline that decodes a window in milliseconds; what it says still depends on tokens, noise and steps."""
    return rewire(codec, denoiser=light_denoiser, vae=light_vae, vocoder=light_vocoder)


@functools.cache
def _tune() -> Float:
    return signals.audio("semanticodec", 3.0, 16000, 3)


def music(samples: int, channels: int = 1) -> Float:
    """Three seconds again and again, which is no whole number of segments: float32 [channels, samples], up to three different channels."""
    return np.pad(_tune()[:channels], ((0, 0), (0, max(samples - 48000, 0))), mode="wrap")[:, :samples]


def random_tokens(frames: int, batch: int = 1, seed: int = 0) -> Tokens:
    """Codes of the tiny network: 512 semantic, 256 acoustic ones."""
    return np.random.default_rng(seed).integers(0, [512, 256], (batch, frames, 2))


def noise_arrays(seed: int, batch: int, windows: int, steps: int) -> list[Float]:
    """The noise of a seed as arrays in the official order."""
    draws = [SeededNoise(seed).at([Place(row, window) for row in range(batch)], steps + 1) for window in range(windows)]
    arrays = [draw(k) for draw in draws for k in range(steps + 1)]
    assert arrays[0].shape == (batch, *LATENT_SHAPE)
    return arrays


def assert_close(got: Float, expected: Float, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)
