"""Runs the recorded cases of VidMuse's single stages. `vidmuse_chains` has those of whole calls, `vidmuse_media` those without networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.models.vidmuse.codec import AudioCodec
from musicrt.runtime.models.vidmuse.config import VISUAL_WIDTH
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.models.vidmuse.pixels import SIZE, pixel_values
from musicrt.runtime.models.vidmuse.spec import CAPACITY, CHECKPOINT, cache_names
from tests.reference.case import Case
from tests.reference.fill import Layout, write_files
from tests.reference.runner import DATA
from tests.reference.signals import Array
from tests.reference.systems.base import Outputs
from tests.reference.systems.vidmuse_chains import ChainRunner
from tests.reference.systems.vidmuse_media import MediaCases

_MAIN, _CODEC = CHECKPOINT.files


class Runner(ChainRunner, MediaCases):
    """See `CodecRunner`."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        values = layout.get("config", {})
        if _MAIN not in layout.get("files", {_MAIN: {}}):
            values, checkpoint = _complete(values, checkpoint, workspace / "checkpoint")
        super().__init__(Pipeline, "vidmuse", values, checkpoint, backend, workspace)

    @property
    def stages(self) -> Mapping[str, Callable[[Case], Outputs]]:
        own: dict[str, Callable[[Case], Outputs]] = {
            "clip": self.clip,
            "temporal": self.temporal,
            "fuse": self.fuse,
            "condition": self.condition,
            "positions": self.positions,
            "lm-forward": self.lm_forward,
            "lm-stream": self.lm_stream,
            "lm-step": self.lm_step,
            "codec-decode": self.codec_decode,
            "codec-encode": self.codec_encode,
            "codec-roundtrip": self.codec_roundtrip,
        }
        return {**own, **self.chains, **self.media}

    def clip(self, case: Case) -> Outputs:
        return self.run_stage("visual", pixel_values=case.inputs["pixel_values"])

    def temporal(self, case: Case) -> Outputs:
        hidden = case.inputs["hidden"]
        return {**self.run_stage("local", hidden=hidden), **self.run_stage("global", hidden=hidden)}

    def fuse(self, case: Case) -> Outputs:
        return self.run_stage("fuse", **case.inputs)

    def condition(self, case: Case) -> Outputs:
        """The null half is that of one black frame each, as often as there are local frames."""
        local, whole = case.inputs["local"], case.inputs["global"]
        video_emb = self._fuse_frames(local, whole)
        black = np.zeros((1, 3, 1, SIZE, SIZE), np.uint8)
        null = np.tile(self._fuse_frames(black, black), (len(local), local.shape[2], 1))
        return {"video_emb": np.concatenate([video_emb, null])}

    def _fuse_frames(self, local: Array, whole: Array) -> Array:
        """Condition of frames uint8 [B, 3, n, 224, 224]: float32 [B, 50 n, d]."""
        sequences: Outputs = {}
        for name, frames in (("local", local), ("global", whole)):
            pixels = np.concatenate([pixel_values(video) for video in frames])
            hidden = self.run_stage("visual", pixel_values=pixels)["hidden"]
            encoded = self.run_stage(name, hidden=hidden)[f"{name}_hidden"]
            sequences[f"{name}_hidden"] = encoded.reshape(len(frames), -1, VISUAL_WIDTH)
        return self.run_stage("fuse", **sequences)["video_emb"]

    def positions(self, case: Case) -> Outputs:
        import torch

        from musicrt.runtime.models.vidmuse.network.transformer import embed_positions, position_periods

        options = case.info["options"]
        periods = position_periods(options["dim"], options.get("max_period") or 10000.0)
        places = torch.from_numpy(case.inputs["positions"]).to(torch.float32)
        return {"embedding": embed_positions(places, periods).numpy()}

    def lm_forward(self, case: Case) -> Outputs:
        """Ours always has a half without condition; it may be any here."""
        sequence = case.inputs["sequence"]
        model = _Model(self, case.inputs["video_emb"], case.inputs["video_emb"][:1], sequence.shape[2])
        logits = model.feed(sequence)[0]
        order = np.argsort(-logits, axis=-1, kind="stable")[..., :2]
        top = {"trace/top2_ids": order, "trace/top2_values": np.take_along_axis(logits, order, axis=-1)}
        return {"logits": logits, **top}

    def lm_stream(self, case: Case) -> Outputs:
        sequence, chunks = case.inputs["sequence"], case.info["options"]["chunks"]
        model = _Model(self, case.inputs["video_emb"], case.inputs["video_emb"][:1], sequence.shape[2])
        blocks = [model.feed(block)[0] for block in np.split(sequence, np.cumsum(chunks)[:-1], axis=2)]
        kept = {f"past_{part}s_0": model.caches[f"{part}_0"][: len(sequence), :, : model.length] for part in ("key", "value")}
        offsets = np.full(len(sequence), model.length)
        return {"logits_after_prefix": blocks[0][:, :, -1], "logits_last": blocks[-1][:, :, -1], **kept, "offsets": offsets}

    def lm_step(self, case: Case) -> Outputs:
        sequence, options = case.inputs["sequence"], case.info["options"]
        video_emb, prefix = case.inputs["video_emb"], options["prefix"]
        half = len(video_emb) // 2
        model = _Model(self, video_emb[:half], video_emb[half : half + 1], sequence.shape[2])
        model.feed(sequence[:, :, :prefix])
        cond, uncond = model.feed(sequence[:, :, prefix:])[:, :, :, -1].reshape(2, -1, self.codec.config.card)
        return {"cond": cond, "uncond": uncond, "combined": uncond + (cond - uncond) * np.float32(options["cfg_coef"])}

    def codec_decode(self, case: Case) -> Outputs:
        codes = case.inputs["codes"]
        return {"audio": self._decode(codes), "trace/latent": self.run_stage("dequantizer", codes=codes)["latent"]}

    def codec_encode(self, case: Case) -> Outputs:
        audio = case.inputs["audio"]
        return {"codes": self._audio.encode(audio[:, 0]), "trace/embedding": self.run_stage("codec-encoder", audio=audio)["embedding"]}

    def codec_roundtrip(self, case: Case) -> Outputs:
        codes = self._audio.encode(case.inputs["audio"][:, 0])
        return {"codes": codes, "audio": self._decode(codes)}

    def _decode(self, codes: Array) -> Array:
        return np.concatenate(list(self._audio.decode(codes)), axis=1)[:, None]

    @property
    def _audio(self) -> AudioCodec:
        return AudioCodec(self.codec.model, self.codec.config)


class _Model:
    """The language model with its caches, fed block by block: what is new at once if nothing came before, else column by column."""

    def __init__(self, runner: Runner, video_emb: Array, null_emb: Array, columns: int) -> None:
        config = runner.codec.config
        null = runner.run_stage("cross", video_emb=null_emb)
        keys = {name.replace("cross_", "null_"): value for name, value in null.items()}
        self._keys = {**runner.run_stage("cross", video_emb=video_emb), **keys}
        self._runner = runner
        room = (2 * len(video_emb), config.heads, max(columns, CAPACITY.minimum), config.head_width)
        self.caches = {name: np.zeros(room, np.float32) for name in cache_names(config.layers)}
        self.length = 0

    def feed(self, tokens: Array) -> Array:
        """tokens: int64 [B, K, n] -> logits float32 [2, B, K, n, card]."""
        count = 1 if self.length else tokens.shape[2]
        return np.concatenate([self._step(block) for block in np.split(tokens, tokens.shape[2] // count, axis=2)], axis=3)

    def _step(self, tokens: Array) -> Array:
        length = np.array([self.length])
        outputs = self._runner.run_stage("lm", tokens=np.ascontiguousarray(tokens), length=length, **self._keys, **self.caches)
        self.length += tokens.shape[2]
        return outputs["logits"]


def _complete(values: Mapping[str, Any], checkpoint: Path, folder: Path) -> tuple[dict[str, Any], Path]:
    """A checkpoint that has only a codec, with the language model of the vendored tiny one: hyper-parameters, and a new folder."""
    layout = json.loads((DATA / "vidmuse" / "layout-tiny.json").read_text())
    write_files({**layout, "files": {_MAIN: layout["files"][_MAIN]}}, {}, "", folder)
    (folder / _CODEC).symlink_to(checkpoint / _CODEC)
    return {**{name: part for name, part in layout["config"].items() if name != "encodec"}, **values}, folder
