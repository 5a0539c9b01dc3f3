"""Keyword arguments of the pipeline's batch calls, where their meaning is documented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.models.music2latent.noise import Noise
from musicrt.runtime.progress import Progress

Tail = Literal["crop", "pad"]


class EncodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.encode_batch`."""

    sample_rate: int | None
    extract_features: bool
    tail: Tail
    max_waveform_length: int | None
    max_batch_size: int | None
    on_progress: Progress


class DecodeOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.decode_batch`."""

    steps: int
    seed: int | None
    noise: Noise | Sequence[NDArray[np.float32]] | None
    max_waveform_length: int | None
    max_batch_size: int | None
    on_progress: Progress
