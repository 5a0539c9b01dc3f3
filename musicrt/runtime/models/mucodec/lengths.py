"""How many codes, windows and samples there are, with the official roundings (SPEC sections 3, 4.1, 4.2 and 4.9).

A code is 1920 samples at 48 kHz, a latent frame 2 codes, a mel frame of the VAE 480 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.mucodec.config import CODE_RATE, CODE_SAMPLES, MEL_HOP, SAMPLE_RATE, VOCODER_EXTRA
from musicrt.runtime.windows import Window

Fit = Literal["window", "length"]
"""window: every window is a whole one, as officially. length: the last one is the smallest bucket that holds what is left."""

WINDOW = 1024
"""Codes of a window: 40.96 s."""
SHARED = 256
"""Codes that a window of decode shares with the one before."""
OVERHANG = 480
"""Samples of an encoder window that are left over from its last code: what encodes to 1024 codes are 1024.25 (SPEC section 3)."""
SPAN = WINDOW * CODE_SAMPLES + OVERHANG
"""Samples from one encoder window to the next."""
BUCKET = 64
"""Codes: the lengths of fit="length" are multiples of this, so that latent frames and vocoder chunks come out even."""
CHUNK, CHUNK_SHIFT = 1024, 256
"""Mel frames of a vocoder chunk, and between the starts of two."""
_ROUNDING = 1024  # samples; a first chunk is cut to a multiple of these


def check_fit(fit: object) -> Fit:
    """Raises InputError for any but the two."""
    match fit:
        case "window" | "length":
            return fit
    raise InputError(f"got fit {fit!r}, expected 'window' or 'length'")


def encoded_codes(samples: int) -> int:
    """Codes of so many samples: those that are full and one more; for a few multiples of a code one less, as officially."""
    return int(samples / SAMPLE_RATE * CODE_RATE) + 1


def encoder_windows(codes: int, fit: Fit) -> list[int]:
    """Codes of the windows that encode computes for so many that are kept; the official code computes one more for most lengths."""
    full, rest = divmod(codes, WINDOW)
    return [WINDOW] * full + [_bucket(rest, fit)] * (rest > 0)


def decoded_samples(codes: int) -> int:
    """Samples that decode gives: 1920 for a code, for a few numbers of codes one less."""
    return int(codes / 100 * 4 * SAMPLE_RATE)


def wave_samples(frames: int) -> int:
    """Samples that the vocoder's chunks make of so many mel frames (SPEC section 4.9)."""
    if frames <= CHUNK:
        return (MEL_HOP * frames + VOCODER_EXTRA) // _ROUNDING * _ROUNDING
    return MEL_HOP * frames + (VOCODER_EXTRA if frames % CHUNK_SHIFT else 0)


@dataclass(frozen=True)
class Span:
    """A window of decode.

    codes: where they lie in all codes, which past their end begin again. known: latent frames at the beginning that are known, of the
    prompt or the window before. dropped: latent frames that are not decoded, those of the prompt. samples: where the sound lies
    in all of it.
    """

    codes: Window
    known: int
    dropped: int
    samples: Window

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.codes.size // 2


def decoder_windows(codes: int, prompt_frames: int, fit: Fit) -> list[Span]:
    """The windows that decode makes of so many codes behind those of a prompt of so many latent frames.

    Where the official code takes too short a last window and fails (1664 codes and every 768 more), it is a whole one here.
    """
    total, hop = 2 * prompt_frames + codes, WINDOW - SHARED
    spans: list[Span] = []
    for first in range(0, max(total - SHARED, 1), hop):
        rest = total - first + (prompt_frames > 0)  # one more, because of the rounding of a short wave
        size = WINDOW if rest > WINDOW else _bucket(rest, fit)
        known, dropped = (SHARED // 2, 0) if first else (prompt_frames, prompt_frames)
        start = spans[-1].samples.stop - SHARED * CODE_SAMPLES if first else 0
        sound = Window(start, start + wave_samples(8 * (size // 2 - dropped)), fade=SHARED * CODE_SAMPLES if first else 0)
        spans.append(Span(Window(first, first + size), known, dropped, sound))
    return spans


def _bucket(codes: int, fit: Fit) -> int:
    return WINDOW if fit == "window" else -(-codes // BUCKET) * BUCKET
