"""From stereo at 48 kHz to what MuQ hears: two limiters, the mean of the channels, half the rate (SPEC sections 3 and 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

JOINT_PEAK, CHANNEL_PEAK = 0.8, 0.9
"""What the limiters leave: of a whole signal, both channels together, and of each channel of a window."""
_CROSSINGS, _ROLLOFF = 6, 0.99  # of the windowed sinc: where it ends, and its cut-off as a share of 12 kHz
_BEFORE = 13  # taps


def limit(audio: Float, peak: Float, threshold: float) -> Float:
    """Scale audio down where its peak (one [1, 1] of all, say, or one [channels, 1] of each) is above the threshold."""
    limited: Float = audio / np.maximum(peak / np.float32(threshold), np.float32(1))
    return limited


def halve_rate(audio: Float) -> Float:
    """48 kHz [..., samples] -> 24 kHz float32 [..., ceil(samples / 2)], by the kernel of torchaudio's `Resample`."""
    samples = audio.shape[-1]
    length = -(-samples // 2)
    padding = [(0, 0)] * (audio.ndim - 1) + [(_BEFORE, _BEFORE + 2)]
    padded, output = np.pad(audio, padding), np.zeros((*audio.shape[:-1], length), np.float32)
    for tap, weight in enumerate(sinc_kernel()):
        output += weight * padded[..., tap : tap + 2 * length : 2]
    return output


def sinc_kernel() -> Float:
    """The 28 taps of the resampling, computed in float64: float32 [28]."""
    angle = np.clip(np.arange(-_BEFORE, _BEFORE + 2) / 2 * _ROLLOFF, -_CROSSINGS, _CROSSINGS)
    return (_ROLLOFF / 2 * np.cos(np.pi * angle / (2 * _CROSSINGS)) ** 2 * np.sinc(angle)).astype(np.float32)


def mix_down(audio: Float) -> Float:
    """A window [..., channels, samples] at 48 kHz -> mono [..., ceil(samples / 2)] at 24 kHz, its channels limited one by one."""
    limited = limit(audio, np.abs(audio).max(axis=-1, keepdims=True), CHANNEL_PEAK)
    return halve_rate(limited.mean(axis=-2))
