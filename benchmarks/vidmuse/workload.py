"""What all contenders work on: parts of any size, and the same arrays for them in every process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Outputs
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.sampling import Sampling
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE
from musicrt.runtime.models.vidmuse.config import IMAGE, SAMPLE_RATE, TOKENS_PER_FRAME, VIDEO_RATE, Config
from musicrt.runtime.models.vidmuse.frames import GLOBAL_FRAMES, Clip
from musicrt.runtime.models.vidmuse.spec import build_spec, cache_names
from musicrt.runtime.spec import ModelSpec

Float = NDArray[np.float32]
Frames = NDArray[np.uint8]

KINDS = {"condition": "s", "prefill": "columns", "step": "columns", "encode": "s", "decode": "s", "generate": "s", "first": "s"}
"""Parts of the work, and what their sizes are in. condition: frames of so many seconds of video, no two alike, up to what the language
model sees. prefill: so many columns at once, with empty caches. step: one column behind so many. encode, decode: of the codec. generate: so
much music for a video of VIDEO seconds, frames to samples. first: the same for a video that is as long, up to the first block of audio."""
VIDEO = 2
"""Seconds of the video that `generate` looks at."""
GUIDANCE = 3.0
SAMPLING = Sampling()
_SMALL = {"condition": 1, "prefill": 2, "step": 1, "encode": 0.5, "decode": 0.5, "generate": 0.1, "first": 1}
_SEED = 7


@dataclass(frozen=True)
class Part:
    """A part of the work, by `KINDS`, and its size."""

    kind: str
    size: float

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind}, {self.size:g} {KINDS[self.kind]}"

    @classmethod
    def parse(cls, name: str) -> Part:
        """The inverse of `name`. Raises InputError."""
        found = re.fullmatch(r"(\w+), ([\d.]+) (columns|s)", name)
        if not found or KINDS.get(found[1]) != found[3]:
            raise InputError(f"got a part {name!r}, expected one such as 'step, 750 columns'")
        return cls(found[1], float(found[2]))

    @property
    def seconds(self) -> float | None:
        """Of video or music; None of a step, which is a fiftieth wherever it is."""
        match self.kind:
            case "step":
                return 1 / FRAME_RATE
            case "prefill":
                return self.size / FRAME_RATE
            case "first":
                return None
            case _:
                return self.size

    @property
    def small(self) -> Part:
        """Something that runs the same networks and takes no time: it warms up for this one."""
        return Part(self.kind, _SMALL[self.kind])


def list_parts(sizes: Mapping[str, Sequence[float]]) -> list[Part]:
    """All parts of the given sizes by kind, in the order of KINDS. Raises InputError for sizes that no stage takes."""
    parts = [Part(kind, size) for kind in KINDS for size in sizes.get(kind, ())]
    for part in parts:
        whole = part.kind in ("condition", "prefill", "step", "first")
        if not (0 if part.kind == "step" else 1 / FRAME_RATE) <= part.size <= 4096 or (whole and part.size % 1):
            raise InputError(f"got the part {part.name!r}, expected up to 4096, whole numbers but of encode, decode and generate")
    return parts


@dataclass(frozen=True)
class Workload:
    """The inputs of parts, which are random. tokens: of the condition that prefill and steps have; capacity: columns of their caches."""

    spec: ModelSpec
    config: Config
    tokens: int
    capacity: int

    @classmethod
    def build(cls, config: Mapping[str, Any], tokens: int = 3000, capacity: int = 1504) -> Workload:
        """`config`: official hyper-parameters. Raises ConfigError."""
        return cls(build_spec(config, "benchmark"), Config.from_mapping(config), tokens, capacity)

    @property
    def pattern(self) -> DelayPattern:
        return DelayPattern(self.config.delays, self.config.special)

    def frames(self, count: int, seed: int) -> Frames:
        """Noise, no two frames alike: uint8 [3, count, 224, 224]."""
        return np.random.default_rng((_SEED, seed)).integers(0, 256, (3, count, IMAGE, IMAGE), np.uint8)

    def pictures(self, seconds: float) -> tuple[Frames, Frames]:
        """Local and global frames of a video, no two alike."""
        return self.frames(max(int(VIDEO_RATE * seconds), 1), 0), self.frames(GLOBAL_FRAMES, 1)

    def clip(self, seconds: float) -> Clip:
        """The same as the pipeline takes them."""
        return Clip.from_tensors(*self.pictures(seconds))

    def condition(self) -> Float:
        """A window's condition, float32 [1, tokens, d]."""
        return self._normal(2, 1, self.tokens, self.config.width)

    def null_condition(self) -> Float:
        """That of one black frame, float32 [1, 50, d]."""
        return self._normal(3, 1, TOKENS_PER_FRAME, self.config.width)

    def columns(self, count: int) -> Tokens:
        """Tokens of a sequence, int64 [1, codebooks, count]."""
        return np.random.default_rng((_SEED, 4)).integers(0, self.config.card, (1, self.config.codebooks, count))

    def caches(self, columns: int) -> dict[str, Float]:
        """Caches of both rows of guidance, float32 [2, heads, capacity, head width], of which so many columns are known."""
        config, known = self.config, dict[str, Float]()
        for index, name in enumerate(cache_names(config.layers)):
            known[name] = np.zeros((2, config.heads, self.capacity, config.head_width), np.float32)
            known[name][:, :, :columns] = self._normal((5, index), 2, config.heads, columns, config.head_width)
        return known

    def audio(self, seconds: float) -> Float:
        """float32 [1, n] at 32 kHz."""
        return synthesise_music(seconds, SAMPLE_RATE, 1)

    def codes(self, seconds: float) -> Tokens:
        """int64 [1, codebooks, n], 50 a second."""
        return self.columns(self.timesteps(seconds))

    def timesteps(self, seconds: float) -> int:
        """Codes of so many seconds."""
        return int(seconds * FRAME_RATE)

    def noise(self, seconds: float) -> list[NDArray[np.float64]]:
        """Uniform numbers by which the tokens of so much music are drawn: float64 [codebooks] for each column."""
        draws = self.pattern.columns(self.timesteps(seconds)) - 1
        return list(np.random.default_rng((_SEED, 6)).random((draws, self.config.codebooks)))

    def _normal(self, seed: int | tuple[int, ...], *shape: int) -> Float:
        return np.random.default_rng((_SEED, *np.atleast_1d(seed))).standard_normal(shape, np.float32)


class Contender(Protocol):
    """One way of running the model."""

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """A call that runs the part, with outputs of one name and meaning for all contenders."""
        ...
