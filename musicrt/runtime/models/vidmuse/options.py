"""What a call of the generator may be told. What it means is documented at `Pipeline.generate_stream`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import check_guidance
from musicrt.runtime.loops.sampling import Sampling
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.noise import Numbers, Uniforms
from musicrt.runtime.progress import Progress
from musicrt.runtime.spec import ModelSpec

Video = str | Path | Clip
"""A file, or frames: `Clip.from_frames` takes those of a video, `Clip.from_tensors` those that the official class takes."""
Prompt = str | Path | NDArray[Any]
"""The beginning of the music: an audio file, samples float [samples] or [channels, samples] at 32 kHz, or codes of whole numbers
[1, codebooks, P] or [codebooks, P]."""
_MOST_FRAMES = 4096


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.generate_stream`."""

    duration: float | None
    top_k: int | None
    top_p: float | None
    temperature: float | None
    guidance: float | None
    extend_stride: float | None
    prompt: Prompt | None
    seed: int | None
    noise: Numbers | Uniforms | None
    global_frames: int | None
    antialias: bool
    on_progress: Progress


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen."""

    sampling: Sampling
    guidance: float


def check_settings(config: Config, spec: ModelSpec, options: GenerateOptions) -> Settings:
    """Raises InputError for a value outside its range."""
    given = {name: spec.given(name, options.get(name)) for name in ("top_k", "top_p", "temperature", "guidance")}
    top_k = min(given["top_k"], config.card) if options.get("top_k") is None else given["top_k"]
    sampling = Sampling(top_k, given["top_p"], given["temperature"]).check(config.card)
    return Settings(sampling, check_guidance(given["guidance"]))


def open_clip(video: Video, duration: float | None, global_frames: object, antialias: object) -> Clip:
    """The frames of a video, of a file those that belong to so many seconds. Raises VideoError for a file that has none, and InputError."""
    if isinstance(global_frames, bool) or not isinstance(global_frames, Integral) or not 1 <= int(global_frames) <= _MOST_FRAMES:
        raise InputError(f"got global_frames {global_frames!r}, expected a whole number from 1 to {_MOST_FRAMES}")
    if not isinstance(antialias, bool):
        raise InputError(f"got antialias {antialias!r}, expected True or False")
    if not isinstance(video, str | Path | Clip):
        raise InputError(f"got a video of type {type(video).__name__}, expected a path or a Clip; Clip.from_frames makes one of arrays")
    seconds = None if duration is None else max(math.ceil(duration), 1)
    return Clip.open(video, seconds=seconds, global_frames=int(global_frames), antialias=antialias)
