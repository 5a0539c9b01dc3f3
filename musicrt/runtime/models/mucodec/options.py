"""Keyword arguments of the pipeline's calls, where their meaning is documented."""

from __future__ import annotations

from typing import TypedDict

from musicrt.runtime.models.mucodec.lengths import Fit
from musicrt.runtime.models.mucodec.noise import Arrays, Noise
from musicrt.runtime.progress import Progress
from musicrt.runtime.source import Audio


class EncodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.encode_batch`."""

    sample_rate: int | None
    fit: Fit
    max_batch_size: int
    on_progress: Progress


class DecodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.decode_stream`."""

    steps: int | None
    guidance: float | None
    prompt: Audio | None
    seed: int | None
    noise: Noise | Arrays | None
    fit: Fit
    on_progress: Progress
