"""Keyword arguments of the pipeline's batch calls, where their meaning is documented."""

from __future__ import annotations

from typing import Literal, TypedDict

from musicrt.runtime.models.semanticodec.noise import Arrays, Noise
from musicrt.runtime.progress import Progress

Channels = Literal["first", "each"]
SamplerName = Literal["ddim", "dpm-solver++"]


class EncodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.encode_batch`."""

    sample_rate: int | None
    channels: Channels
    max_batch_size: int
    on_progress: Progress


class DecodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.decode_batch`."""

    steps: int | None
    guidance: float | None
    eta: float | None
    sampler: SamplerName
    seed: int | None
    noise: Noise | Arrays | None
    max_batch_size: int
    on_progress: Progress
