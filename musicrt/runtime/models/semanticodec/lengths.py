"""How many tokens, segments, windows and samples there are, with the official roundings (SPEC sections 2.1, 2.4, 3.1 and 3.7).

`stack` is K of the SPEC: 4, 2 and 1 for the token rates 25, 50 and 100.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.models.semanticodec.config import HOP, MEL_BINS, PATCH, SAMPLE_RATE, SEGMENT_FRAMES
from musicrt.runtime.windows import Window

Float = NDArray[np.float32]

SEGMENT = SEGMENT_FRAMES * HOP
"""Samples of a segment: 10.24 s."""
WINDOW_SAMPLES = SEGMENT + 32
"""What the vocoder makes of a window."""
FADE = 10240
"""Samples that neighbouring windows share. Windows are 32 samples longer than was meant: each begins 2 ms late (SPEC section 3.7)."""
WINDOW_HOP = WINDOW_SAMPLES - FADE
_PATCHES = SEGMENT_FRAMES // PATCH * (MEL_BINS // PATCH)
_STEP = 0.16  # seconds of a column of patches
_INACTIVE = 1e-7  # standard deviation of a mel row that shows nothing


def target_token_len(samples: int, stack: int) -> float:
    """The official float under the official name: tokens of so many samples at 16 kHz, before rounding up.

    Samples beyond the last full 0.16 s, even none, count as 0.16 s. The order of the operations is the official one: their rounding
    decides over one token more for 6 % of all lengths, and over 0.16 s less for many multiples of it.
    """
    duration = samples / SAMPLE_RATE
    duration += _STEP - duration % _STEP
    return 8 * duration / _STEP / stack  # 8 patches in a column


def token_count(samples: int, stack: int) -> int:
    """Token pairs that the official code wants of so many samples at 16 kHz."""
    return math.ceil(target_token_len(samples, stack))


def encoded_tokens(samples: int, stack: int) -> int:
    """Token pairs that encode gives: all that are wanted, or all there are, which may be one less where a segment is nearly full."""
    return min(token_count(samples, stack), segment_count(samples) * _PATCHES // stack)


def segment_count(samples: int) -> int:
    """Segments that the encoder sees. A length that is a multiple of a segment gets one more, all silence."""
    return samples // SEGMENT + 1


def token_windows(tokens: int, stack: int) -> list[tuple[int, int]]:
    """Start and stop of the windows that decode makes of so many tokens; all but the last are full."""
    size = _PATCHES // stack
    step = size - size // 16
    count = 1 + max(-(-(tokens - size) // step), 0) if tokens else 0
    return [(start, min(start + size, tokens)) for start in range(0, count * step, step)]


def decoded_samples(tokens: int, stack: int) -> int:
    """Samples at 16 kHz that decode keeps: 320 * stack for a token, for a few numbers of tokens one less."""
    return int(tokens / 8 * 16 * 0.01 * stack * SAMPLE_RATE)


def decode_windows(tokens: int, stack: int) -> list[Window]:
    """The windows that so many tokens decode to, in samples of the result; the last one ends where nothing more is kept."""
    starts = [index * WINDOW_HOP for index in range(len(token_windows(tokens, stack)))]
    rest = min(max(decoded_samples(tokens, stack) - starts[-1], FADE), WINDOW_SAMPLES)
    stops = [*(start + FADE for start in starts[1:]), starts[-1] + rest]
    return [Window(start, stop, fade=FADE if start else 0) for start, stop in zip(starts, stops, strict=True)]


def padding_cut(mel: Float) -> float:
    """Where the active part of a segment's mel, float32 [1024, 128], ends: 0 to 1, and 1 where all of it is active.

    A row is active if its bins differ. The official code fails on a segment with just one active row, and goes on with 0.
    """
    active = np.flatnonzero(mel.std(axis=1, ddof=1, dtype=np.float64) > _INACTIVE)
    if len(active) == len(mel):
        return 1.0
    return float(active[-1] + 1) / len(mel) if len(active) > 1 else 0.0
