"""What MusicRT is compared with: the networks as the official code runs them (needs torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rounds import Outputs
from benchmarks.vidmuse.official import Cache, OfficialCondition, OfficialDecoder, OfficialEncoder, OfficialLanguage, repeat_null
from benchmarks.vidmuse.workload import GUIDANCE, SAMPLING, VIDEO, Frames, Part, Workload
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.autoregressive import TokenSequence, write_columns
from musicrt.runtime.loops.delays import Tokens
from musicrt.runtime.loops.sampling import Float, pick
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.network.checkpoint import Networks, load_networks
from musicrt.runtime.models.vidmuse.pixels import pixel_values
from musicrt.runtime.models.vidmuse.spec import CHECKPOINT


class Eager:
    """The networks in torch. Preprocessing and the choice of tokens are those of MusicRT."""

    def __init__(self, checkpoint: Path, config: Mapping[str, Any], threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        networks = read_networks(checkpoint, Config.from_mapping(config))
        self.condition, self.language = OfficialCondition(networks.muse), OfficialLanguage(networks.muse, networks.config)
        self.encoder, self.decoder = OfficialEncoder(networks.codec), OfficialDecoder(networks.codec)
        for part in (self.condition, self.language, self.encoder, self.decoder):
            part.eval().requires_grad_(False)

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """See `Contender`."""
        return torch.inference_mode()(self._prepare(part, work))

    @torch.inference_mode()
    def _prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        size = round(part.size)
        match part.kind:
            case "condition":
                pictures = work.pictures(size)
                return lambda: {"video_emb": self.look(*pictures)[:1].numpy()}
            case "prefill":
                tokens, both = torch.from_numpy(work.columns(size)), both_halves(work)
                return lambda: {"logits": self.evaluate(tokens, both, [])[0][:, :, :, -1].numpy()}
            case "step":
                tokens, both = torch.from_numpy(work.columns(1)), both_halves(work)
                caches = known_caches(work, size)
                return lambda: {"logits": self.evaluate(tokens, both, caches)[0][:, :, :, -1].numpy()}
            case "encode":
                audio = torch.from_numpy(work.audio(part.size))[None]
                return lambda: {"codes": self.encoder(audio).numpy()}
            case "decode":
                codes = torch.from_numpy(work.codes(part.size))
                return lambda: {"audio": self.decoder(codes)[:, 0].numpy()}
            case "generate":
                pictures, noise = work.pictures(VIDEO), work.noise(part.size)
                return lambda: self.generate(pictures, noise, work)
            case _:
                raise InputError(f"got {part.name!r} for eager, which gives no audio before all tokens are there; see 'generate'")

    def look(self, local: Frames, whole: Frames) -> Tensor:
        """Frames uint8 [3, n, 224, 224] -> conditions of both halves, float32 [2, 50 n, d]."""
        pixels = [pixel_values(frames) for pair in (local, whole) for frames in (pair, np.zeros_like(pair))]
        rows = [torch.from_numpy(np.stack(pixels[first : first + 2])) for first in (0, 2)]
        both: Tensor = self.condition(*rows)
        return both

    def evaluate(self, tokens: Tensor, both: Tensor, caches: list[Cache]) -> tuple[Tensor, list[Cache]]:
        """Logits float32 [2, B, K, S, card] of tokens int64 [B, K, S], as one batch with the condition and without; and caches."""
        logits, caches = self.language(tokens.repeat(2, 1, 1), both, caches)
        return logits.unflatten(0, (2, -1)), caches

    def generate(self, pictures: tuple[Frames, Frames], noise: list[Any], work: Workload) -> Outputs:
        """Codes and audio. noise: uniform numbers for each column, those of the delays included."""
        both, caches, numbers = self.look(*pictures), list[Cache](), iter(noise)

        def evaluate(columns: Tokens) -> Float:
            nonlocal caches
            logits, caches = self.evaluate(torch.from_numpy(np.ascontiguousarray(columns)), both, caches)
            return logits[:, :, :, -1].numpy()

        def choose(logits: Float) -> Tokens:
            return SAMPLING.choose(logits, lambda _, weights: pick(weights, next(numbers)), 0)

        pattern, prompt = work.pattern, np.zeros((1, work.config.codebooks, 0), np.int64)
        timesteps = len(noise) - pattern.lag
        sequence = TokenSequence(pattern, prompt, timesteps)
        for _ in write_columns(sequence, evaluate, choose, GUIDANCE):
            pass
        codes = sequence.codes()
        return {"codes": codes, "audio": self.decoder(torch.from_numpy(codes))[:, 0].numpy()}


def both_halves(work: Workload) -> Tensor:
    """The condition and, as many tokens, that of black frames: float32 [2, tokens, d]."""
    null = repeat_null(torch.from_numpy(work.null_condition()), work.tokens)
    return torch.cat([torch.from_numpy(work.condition()), null])


def known_caches(work: Workload, columns: int) -> list[Cache]:
    """Caches that hold so many columns; none where these are none."""
    arrays = [torch.from_numpy(np.ascontiguousarray(cache[:, :, :columns])) for cache in work.caches(columns).values()] if columns else []
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def read_networks(checkpoint: Path, config: Config) -> Networks:
    """The networks of a checkpoint. Raises CheckpointError."""
    return load_networks(read_checkpoint(CHECKPOINT, checkpoint), config.to_mapping())
