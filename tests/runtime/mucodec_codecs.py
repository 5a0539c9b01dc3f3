"""Pipelines of MuCodec for tests: the tiny network, and cheap functions in the place of its stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.noise import SeededNoise
from musicrt.runtime.models.mucodec.pipeline import Pipeline
from musicrt.runtime.models.mucodec.spec import build_spec
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array
from tests.conftest import tiny_layout
from tests.reference import signals

Float = NDArray[np.float32]
Codes = NDArray[np.int64]
Stage = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Watched = tuple[Pipeline, dict[str, FakeSession]]

SIZE = 512
"""Entries of a codebook of the tiny network."""


def open_tiny(checkpoint: Path) -> Pipeline:
    """The tiny network of a checkpoint folder, in PyTorch."""
    config = json.loads((checkpoint / "config.json").read_text())
    return Pipeline(Model.open_checkpoint("mucodec", checkpoint, config))


def open_light(codebooks: int = 1, identity: str | None = None, **stages: Stage) -> Watched:
    """A pipeline without a network, whose stages take milliseconds, and its sessions, which record every call.

    What comes out still depends on all that goes in. `stages` replace those of LIGHT.
    """
    config = {**tiny_layout("mucodec")["config"]}
    config["rvq"] = {**config["rvq"], "n_codebooks": codebooks}
    spec = build_spec(config, "light")
    functions: dict[str, Stage] = {**LIGHT, "quantizer": functools.partial(light_quantizer, codebooks=codebooks), **stages}
    sessions = {stage.name: FakeSession(stage, functions.get(stage.name)) for stage in spec.stages}
    return Pipeline(Model(spec, sessions.__getitem__, Choice("light", "a test"), identity=identity)), sessions


def light_muq(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Four frames of a mel as one, its lower half."""
    mel = feeds["mel"]
    return {"hidden": mel.reshape(len(mel), 128, -1, 4).mean(axis=3).transpose(0, 2, 1)[..., :64]}


def light_quantizer(feeds: Mapping[str, Array], codebooks: int) -> dict[str, Array]:
    """Codes of the loudness, finer from codebook to codebook."""
    level = feeds["hidden"].mean(axis=2)
    return {"codes": np.stack([np.int64(np.abs(level) * 50 * 7**i) % SIZE for i in range(codebooks)], axis=1)}


def light_dequantizer(feeds: Mapping[str, Array]) -> dict[str, Array]:
    angle = (feeds["codes"] * np.arange(1, 1 + feeds["codes"].shape[1])[:, None]).sum(axis=1)
    return {"quantised": np.sin(angle[:, None] + np.arange(64)[:, None]).astype(np.float32)}


def light_condition(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The even codes for the lower half of the channels, the odd ones for the upper."""
    quantised, known = feeds["quantised"], feeds["known"]
    pairs = quantised[:, :16].reshape(len(quantised), 16, -1, 2).transpose(0, 3, 1, 2).reshape(len(quantised), 32, -1, 1)
    return {"condition": np.repeat(pairs * known[:, None, :, None], 32, axis=3)}


def light_normfeat(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"projected": 2 * feeds["latents"] - 1, "returned": 0.5 * feeds["latents"] + np.float32(0.5)}


def light_context(feeds: Mapping[str, Array]) -> dict[str, Array]:
    mixed = np.float32(0.3) * feeds["incontext"] + feeds["condition"]
    rows = mixed.reshape(len(mixed), 32, -1, 2, 16, 2).mean(axis=(3, 5)).transpose(0, 2, 3, 1)
    return {"context": rows.reshape(len(mixed), -1, 32)}


def light_timesteps(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "modulation": np.outer(feeds["timestep"], np.ones(192, np.float32)),
        "embedding": np.outer(feeds["timestep"], np.ones(32, np.float32)),
    }


def light_estimator(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Depends on all that the estimator is given, item by item."""
    context, x = feeds["context"], feeds["x"]
    rows = context.reshape(*context.shape[:2], -1, 16, 32).transpose(0, 1, 4, 2, 3)
    told = np.repeat(np.repeat(rows, 2, axis=3), 2, axis=4)
    time = feeds["modulation"].mean(axis=1) + feeds["embedding"].mean(axis=1)
    return {"velocity": np.sin(2 * told + time[:, None, None, None]) - np.float32(0.3) * x}


def light_vae(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A spectrogram of which each eight frames come from one frame of the latents."""
    frames = np.tensordot(feeds["latents"], np.cos(np.arange(16)).astype(np.float32), (1, 0))
    return {"mel": np.tile(np.repeat(frames, 8, axis=1), 8)}


def light_vocoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Each frame as 480 equal samples, and 16 more of the last one."""
    levels = feeds["mel"] @ np.cos(np.arange(256)).astype(np.float32)
    return {"waveform": np.pad(np.repeat(np.arctan(levels) / 2, 480, axis=1), ((0, 0), (0, 16)), mode="edge")}


def light_vae_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    mel = feeds["mel"]
    frames = mel[:, : mel.shape[1] // 8 * 8].reshape(len(mel), 1, -1, 8, 32, 8).mean(axis=(3, 5))
    mean = np.repeat(np.float32(0.1) * frames, 16, axis=1)
    return {"mean": mean, "deviation": np.full_like(mean, 0.5)}


LIGHT: Mapping[str, Stage] = {
    "muq": light_muq,
    "dequantizer": light_dequantizer,
    "condition": light_condition,
    "normfeat": light_normfeat,
    "context": light_context,
    "timesteps": light_timesteps,
    "estimator": light_estimator,
    "vae": light_vae,
    "vocoder": light_vocoder,
    "vae-encoder": light_vae_encoder,
}


@functools.cache
def _tune() -> Float:
    return signals.audio("mucodec", 3.0, 48000, 2)


def music(samples: int, channels: int = 2) -> Float:
    """Three seconds again and again, which is no whole number of windows: float32 [channels, samples]."""
    return np.pad(_tune()[:channels], ((0, 0), (0, max(samples - 144_000, 0))), mode="wrap")[:, :samples]


def random_codes(count: int, codebooks: int = 1, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, SIZE, (1, codebooks, count))


def noise_arrays(seed: int, windows: int, prompt_frames: int = 0, frames: int = 512) -> list[Float]:
    """The noise of a seed as arrays in the official order."""
    noise = SeededNoise(seed)
    posterior = [noise.posterior(channel, prompt_frames)[None] for channel in range(2 if prompt_frames else 0)]
    return [*posterior, *(noise.initial(window, frames)(0) for window in range(windows))]


def distance(got: Float, expected: Float) -> float:
    """Relative L2."""
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
