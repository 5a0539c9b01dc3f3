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
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.models.mucodec.config import CODE_RATE, SAMPLE_RATE, Config
from musicrt.runtime.models.mucodec.spec import build_spec
from musicrt.runtime.spec import ModelSpec
from musicrt.runtime.verify import probe_inputs

Float = NDArray[np.float32]
Codes = NDArray[np.int64]

KINDS = {"muq": "codes", "encode": "s", "prepare": "frames", "step": "frames", "vae": "frames", "vocoder": "frames"}
"""Parts of the work, and what their sizes are in. muq: MuQ on one window. encode: a whole clip. prepare: what is done once per window
before the first step. step: one evaluation of the estimator with guidance. vae, vocoder: of both channels, unless one is asked for.
frames: of the latents, 12.5 a second."""
GUIDANCE = 1.5
TIME = 0.5
"""Of the step that is timed."""
STEPS = 20
"""Of the schedule that is prepared: those of code2sound."""
_UNITS = {"codes": CODE_RATE, "s": 1.0, "frames": CODE_RATE / 2}
"""How many of each are a second."""
_SMALL = {"codes": 64, "s": 1.0, "frames": 4}


@dataclass(frozen=True)
class Part:
    """A part of the work, by `KINDS`, and its size. channels: of vae and vocoder."""

    kind: str
    size: float
    channels: int = 2

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind}, {self.size:g} {KINDS[self.kind]}{' of one channel' if self.channels == 1 else ''}"

    @classmethod
    def parse(cls, name: str) -> Part:
        """The inverse of `name`. Raises InputError."""
        found = re.fullmatch(r"(\w+), (\S+) (codes|s|frames)( of one channel)?", name)
        if not found or KINDS.get(found[1]) != found[3]:
            raise InputError(f"got a part {name!r}, expected one such as 'step, 128 frames'")
        return cls(found[1], float(found[2]), 1 if found[4] else 2)

    @property
    def seconds(self) -> float:
        """Of audio."""
        return self.size / _UNITS[KINDS[self.kind]]

    @property
    def small(self) -> Part:
        """Something that runs the same networks and takes no time: it warms up for this one. Of a clip MuQ is warmed up."""
        kind = "muq" if self.kind == "encode" else self.kind
        return Part(kind, _SMALL[KINDS[kind]], self.channels)


def list_parts(sizes: Mapping[str, Sequence[float]], channels: int) -> list[Part]:
    """All parts of the given sizes by kind, in the order of KINDS. Raises InputError for sizes that no stage takes."""
    parts = [Part(kind, size, channels if kind in ("vae", "vocoder") else 2) for kind in KINDS for size in sizes.get(kind, ())]
    for part in parts:
        if not 0 < part.size <= 8192 or (KINDS[part.kind] != "s" and part.size % 4):
            raise InputError(f"got the part {part.name!r}, expected a size from 1 to 8192; codes and frames in multiples of 4")
    return parts


@dataclass(frozen=True)
class Workload:
    """The inputs of parts, which are random and look like real ones."""

    spec: ModelSpec
    config: Config

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Workload:
        """`config`: official hyper-parameters. Raises ConfigError."""
        return cls(build_spec(config, "benchmark"), Config.from_mapping(config))

    def audio(self, seconds: float) -> Float:
        """float32 [2, n] at 48 kHz."""
        return synthesise_music(seconds, SAMPLE_RATE, 2)

    def feeds(self, stage: str, **sizes: int) -> dict[str, NDArray[Any]]:
        """Inputs of a stage of the spec. Unless `sizes` say otherwise: a batch of 1, all codebooks, both rows of guidance."""
        common = {"batch": 1, "codebooks": self.config.rvq.n_codebooks, "guidance": 2, "steps": 1}
        return probe_inputs(self.spec.stage(stage), {**common, **sizes}, 3)

    def mel(self, codes: int) -> Float:
        """What MuQ hears: float32 [1, 128, 4 codes]."""
        return self.feeds("muq", codes=codes)["mel"]

    def codes(self, frames: int) -> Codes:
        """int64 [1, n, 2 frames]."""
        return self.feeds("dequantizer", codes=2 * frames)["codes"]

    def signal(self, frames: int) -> tuple[Float, Float, Float]:
        """x, condition [1, 32, frames, 32], and known latents [1, 32, frames / 4, 32], as in all windows but the first."""
        feeds = self.feeds("context", rows=frames // 2)
        return self.feeds("normfeat", frames=frames)["latents"], feeds["condition"], feeds["incontext"][:, :, : frames // 4]

    def latents(self, frames: int, channels: int) -> Float:
        """float32 [channels, 16, frames, 32]."""
        return self.feeds("vae", frames=frames, batch=channels)["latents"]

    def spectrogram(self, frames: int, channels: int) -> Float:
        """Log-mel of so many latent frames, float32 [channels, 8 frames, 256]."""
        return self.feeds("vocoder", mel_frames=8 * frames, batch=channels)["mel"]


class Contender(Protocol):
    """One way of running the model."""

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """A call that runs the part, with outputs of one name and meaning for all contenders."""
        ...
