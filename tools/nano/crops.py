"""What one step of training hears: crops of the sounds of `dataset.py` (needs torch)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FADE = 200
"""Samples over which spliced sounds come and go."""


class Crops:
    """Random crops of the training sounds, a function of seed, step and worker."""

    def __init__(self, folders: list[Path], seed: int, samples: int, worker: int = 0) -> None:
        self.seed, self.samples, self.worker = seed, samples, worker
        self.sounds = np.concatenate([np.load(folder / "audio.npy", mmap_mode="r") for folder in folders])

    def draw(self, step: int, count: int) -> Tensor:
        """float32 [count, samples]: several sounds one after the other, some of them two at once, at drawn levels."""
        rng = np.random.default_rng((self.seed, step, self.worker) if self.worker else (self.seed, step))
        return torch.from_numpy(np.stack([self._splice(rng) for _ in range(count)]).astype(np.float32))

    def _splice(self, rng: np.random.Generator) -> np.ndarray:
        """Sounds that differ in one crop: the norms of the network see loud and soft together, as in a long piece."""
        inner = np.sort(rng.integers(self.samples // 8, self.samples, size=rng.integers(0, 4)))
        splice = np.zeros(self.samples)
        for start, end in pairwise((0, *inner, self.samples)):
            crop = self._crop(rng, end - start)
            if rng.random() < 0.15:
                crop = crop + rng.uniform(0.2, 0.8) * self._crop(rng, end - start)
            level = 10.0 ** (rng.uniform(-4.0, 0.0) / 20.0) * float(rng.choice((-1, 1)))
            fade = np.minimum(1.0, np.minimum(np.arange(end - start), np.arange(end - start)[::-1]) / FADE)
            splice[start:end] = level * crop / max(1.0, float(np.abs(crop).max(initial=0.0))) * fade
        return splice

    def _crop(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        first = int(rng.integers(len(self.sounds) - samples))
        return self.sounds[first : first + samples].astype(np.float32) / 32767.0


def held_out_crops(folder: Path, samples: int) -> Tensor:
    """One crop of each third held-out sound: float32 [n, samples]."""
    audio, names = np.load(folder / "audio.npy", mmap_mode="r"), json.loads((folder / "names.json").read_text())

    def crops() -> Iterator[np.ndarray]:
        at = 0
        for index, size in enumerate(names.values()):
            if index % 3 == 0:
                yield audio[at + size // 3 : at + size // 3 + samples].astype(np.float32) / 32767.0
            at += size

    return torch.from_numpy(np.stack(list(crops())))
