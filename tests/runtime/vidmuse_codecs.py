"""Pipelines of VidMuse for tests: the tiny network, and cheap functions in the place of its stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.models.vidmuse.spec import build_spec, cache_names, cross_names
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec
from tests.conftest import tiny_layout

Float = NDArray[np.float32]
Codes = NDArray[np.int64]
Frames = NDArray[np.uint8]

CARD = 256
"""Codes of a codebook of the light pipeline: few, so that a step takes a fraction of a millisecond."""


class LightSession(Session):
    """A stage computed by a function below; `sizes` are those of the first input of each call. `limits`: smaller ones of some axes."""

    def __init__(self, stage: StageSpec, limits: Mapping[str, tuple[int, int]] | None = None) -> None:
        super().__init__(stage)
        self.sizes: list[tuple[int, ...]] = []
        self._limits = {**super().limits, **(limits or {})}

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._limits

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        self.sizes.append(feeds[self.inputs[0].name].shape)
        made = globals()["light_" + self.stage.name.replace("-", "_")](feeds)
        return {tensor.name: np.ascontiguousarray(made[tensor.name], tensor.dtype) for tensor in self.outputs if tensor.name in names}


Watched = tuple[Pipeline, dict[str, LightSession]]


def open_light(
    identity: str | None = None, *, flavour: str = "ort", limits: Mapping[str, tuple[int, int]] | None = None, **encodec: Any
) -> Watched:
    """A pipeline without a network, and its sessions. What comes out depends on all that goes in. `encodec`: other values of the codec;
    `limits`: of the axes that the language model's session accepts.
    """
    config = {**tiny_layout("vidmuse")["config"]}
    config.pop("codec", None)
    lm = config["lm"]
    config["lm"] = {**lm, "transformer_lm": {**lm["transformer_lm"], "card": CARD}}
    config["encodec"] = {**config["encodec"], "codebook_size": CARD, "target_bandwidths": [1.6], **encodec}
    spec = build_spec(config, "light")
    sessions = {stage.name: LightSession(stage.in_flavour(flavour), limits if stage.name == "lm" else None) for stage in spec.stages}
    return Pipeline(Model(spec, sessions.__getitem__, Choice("light", "a test"), identity=identity)), sessions


def open_tiny(checkpoint: Path) -> Pipeline:
    """The tiny network of a checkpoint folder, in PyTorch."""
    return Pipeline(Model.open_checkpoint("vidmuse", checkpoint, json.loads((checkpoint / "config.json").read_text())))


def light_visual(feeds: Mapping[str, Array]) -> dict[str, Array]:
    pixels = feeds["pixel_values"]
    level = pixels.mean(axis=(2, 3)) @ np.array([1.0, 2.0, 3.0], np.float32)
    return {"hidden": np.sin(level[:, None, None] + np.arange(50)[:, None] + np.arange(768)).astype(np.float32)}


def light_local(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"local_hidden": feeds["hidden"] * np.float32(2)}


def light_global(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"global_hidden": feeds["hidden"] * np.float32(3)}


def light_fuse(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"video_emb": feeds["local_hidden"][..., :64] + feeds["global_hidden"].mean(axis=1, keepdims=True)[..., :64]}


def light_cross(feeds: Mapping[str, Array]) -> dict[str, Array]:
    emb = feeds["video_emb"]
    heads = emb.reshape(*emb.shape[:2], 4, 16).transpose(0, 2, 1, 3)
    return {name: heads * np.float32(number + 1) for number, name in enumerate(cross_names(2))}


def light_lm(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Logits by all tokens so far, as the cache holds them, by the codebook, and by the condition, of which copies count as one."""
    tokens, start = feeds["tokens"], int(feeds["length"][0])
    batch, books, columns = tokens.shape
    mixed = (tokens * np.arange(1, books + 1)[:, None]).sum(axis=1)
    for name in cache_names(2):
        feeds[name][:, :, start : start + columns] = np.sin(np.tile(mixed, (2, 1)))[:, None, :, None]
    past = np.cumsum(feeds["key_0"][:, 0, : start + columns, 0] * np.cos(np.arange(start + columns)), axis=1)[:, start:]
    seen = feeds["cross_value_1"].mean(axis=(1, 2, 3)), np.repeat(feeds["null_value_1"].mean(), batch)
    told = past.reshape(2, batch, columns) + np.stack(seen)[:, :, None]
    angle = told[:, :, None, :, None] * _waves() + np.arange(books)[:, None, None]
    return {"logits": (6 * np.sin(angle)).astype(np.float32)}


@functools.cache
def _waves() -> Float:
    return np.random.default_rng(5).standard_normal(CARD).astype(np.float32) * 3


def light_codec_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    audio = feeds["audio"][:, 0]
    padded = np.pad(audio, ((0, 0), (0, -audio.shape[1] % 640)))
    level = padded.reshape(len(audio), -1, 640).mean(axis=2)
    return {"embedding": np.repeat(level[:, None], 32, axis=1)}


def light_quantizer(feeds: Mapping[str, Array]) -> dict[str, Array]:
    level = feeds["embedding"].mean(axis=1)
    return {"codes": np.stack([np.int64(np.abs(level) * 900 * 7**book) % CARD for book in range(4)], axis=1)}


def light_dequantizer(feeds: Mapping[str, Array]) -> dict[str, Array]:
    angle = (feeds["codes"] * np.arange(1, 5)[:, None]).sum(axis=1)
    return {"latent": np.sin(angle[:, None] + np.arange(32)[:, None]).astype(np.float32)}


def light_recurrence(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The sum of seven neighbours, and of everything before."""
    latent = feeds["latent"].mean(axis=1)
    near = np.stack([latent[:, shift : latent.shape[1] - 6 + shift] * (shift + 1) for shift in range(7)]).sum(axis=0)
    sums = feeds["h"][0, :, :1] + np.cumsum(near, axis=1)
    channels = feeds["h"].shape[2]
    features = np.repeat((0.1 * near + 0.01 * sums)[:, None], channels, axis=1).astype(np.float32)
    state = np.broadcast_to(sums[:, -1, None], feeds["h"].shape).astype(np.float32)
    return {"features": features, "next_h": state, "next_c": feeds["c"] + np.float32(1)}


def light_synthesis(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Samples between a frame and the next but one, on either side; mirrored at the ends."""
    features = feeds["features"].mean(axis=1)
    wide = np.pad(features, ((0, 0), (2, 2)), mode="symmetric")
    before, after = wide[:, :-4], wide[:, 4:]
    ramp = np.linspace(0, 1, 640, dtype=np.float32)
    audio = features[:, :, None] + before[:, :, None] * (1 - ramp) - after[:, :, None] * ramp
    return {"audio": np.tanh(audio.reshape(len(audio), 1, -1)).astype(np.float32)}


def picture(number: int) -> Frames:
    """A frame unlike those of other numbers, uint8 [3, 224, 224]."""
    shades = np.random.default_rng(number).integers(0, 256, (3, 7, 7), np.uint8)
    return np.repeat(np.repeat(shades, 32, axis=1), 32, axis=2)


def frames(*numbers: int) -> Frames:
    """Those pictures, [3, n, 224, 224]."""
    return np.stack([picture(number) for number in numbers], axis=1)


def clip(seconds: int = 1, first: int = 0, around: int = 3) -> Clip:
    """Two local frames a second, and some global ones."""
    return Clip.from_tensors(frames(*range(first, first + 2 * seconds)), frames(*range(first + 500, first + 500 + around)))


def uniforms(draws: int, rows: int = 4, seed: int = 0) -> list[NDArray[np.float64]]:
    return list(np.random.default_rng(seed).random((draws, rows)))


def distance(got: Float, expected: Float) -> float:
    """Relative L2."""
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
