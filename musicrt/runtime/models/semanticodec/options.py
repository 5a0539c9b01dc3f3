"""Keyword arguments of the pipeline's batch calls, where their meaning is documented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.models.semanticodec.noise import Noise
from musicrt.runtime.pipeline import Progress

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
    eta: float
    sampler: SamplerName
    seed: int | None
    noise: Noise | Sequence[NDArray[np.float32]] | None
    max_batch_size: int
    on_progress: Progress
