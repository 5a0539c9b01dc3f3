"""Changing the sample rate of audio, as a whole or block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import soxr

from musicrt.runtime.errors import InputError
from musicrt.runtime.sinc import JULIUS, TORCHAUDIO, resample_sinc, sinc_length
from musicrt.runtime.waveform import Audio, check_audio, check_rate

Resampler = Literal["soxr", "sinc", "julius"]
"""soxr: errors below those of 24-bit PCM. sinc, julius: the defaults of torchaudio and julius, for systems trained with them."""

_SHAPES = {"sinc": TORCHAUDIO, "julius": JULIUS}
_QUALITY = "VHQ"  # errors below those of 24-bit PCM, at about 1.2 times the cost of HQ, itself 1000 times faster than real time


def resample_audio(audio: npt.ArrayLike, source_rate: int, target_rate: int, kernel: Resampler = "soxr") -> Audio:
    """Resample [channels, samples] to float32 [channels, ceil(samples * target_rate / source_rate)] (julius: floor).

    Equal rates change nothing. Raises InputError.
    """
    checked = check_audio(audio)
    blocks = resample_blocks([checked], len(checked), source_rate, target_rate, kernel)
    return checked if source_rate == target_rate else join_blocks(blocks, len(checked))


def resample_blocks(
    blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int, kernel: Resampler = "soxr"
) -> Iterator[Audio]:
    """Resample consecutive float32 [channels, n] blocks. Together they give what `resample_audio` gives for the whole.

    Raises InputError for a wrong rate or kernel, in the call itself.
    """
    check_kernel(kernel)
    source_rate, target_rate = check_rate(source_rate), check_rate(target_rate)
    if source_rate == target_rate:
        return iter(blocks)
    if kernel in _SHAPES:
        return resample_sinc(blocks, channels, source_rate, target_rate, _SHAPES[kernel])
    return _resample_soxr(blocks, channels, source_rate, target_rate)


def check_kernel(kernel: Resampler) -> None:
    """Raises InputError for any but those there are."""
    if kernel not in get_args(Resampler):
        raise InputError(f"resampling: got {kernel!r}, expected one of {', '.join(get_args(Resampler))}")


def resampled_length(samples: int, source_rate: int, target_rate: int, kernel: Resampler = "soxr") -> int:
    """How many samples `resample_audio` makes of so many. Raises InputError for a wrong rate."""
    source_rate, target_rate = check_rate(source_rate), check_rate(target_rate)
    if kernel in _SHAPES and source_rate != target_rate:
        return sinc_length(samples, source_rate, target_rate, _SHAPES[kernel])
    return -(-samples * target_rate // source_rate)


def _resample_soxr(blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int) -> Iterator[Audio]:
    resampler = soxr.ResampleStream(source_rate, target_rate, channels, dtype="float32", quality=_QUALITY)
    taken = given = 0
    for block in blocks:
        taken += block.shape[1]
        samples = resampler.resample_chunk(np.ascontiguousarray(block.T))
        given += len(samples)
        if len(samples):
            yield np.ascontiguousarray(samples.T)
    # soxr rounds the length to the nearest; enough silence for one sample more lets us round it up, and cut the rest.
    silence = np.zeros((-(-source_rate // target_rate), channels), np.float32)
    rest = resampler.resample_chunk(silence, last=True)[: resampled_length(taken, source_rate, target_rate) - given]
    if len(rest):
        yield np.ascontiguousarray(rest.T)


def join_blocks(blocks: Iterable[Audio], channels: int) -> Audio:
    """All blocks as one [channels, samples]; of no blocks it has no samples."""
    return np.concatenate([np.zeros((channels, 0), np.float32), *blocks], axis=1)
