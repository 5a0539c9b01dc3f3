"""Audio to be encoded, from a file or an array, read once from beginning to end in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio import probe_audio, stream_audio
from musicrt.runtime.errors import AudioError
from musicrt.runtime.resampling import Resampler, check_kernel, resample_audio, resampled_length
from musicrt.runtime.waveform import check_audio

Float = NDArray[np.float32]
_BLOCK = 1 << 16


@dataclass(frozen=True)
class AudioSource:
    """Audio at the model's rate: `samples` for each of `channels`. `source_rate` is the rate before resampling.

    `open` begins to read: blocks [channels, n]. A file is not held open before.
    """

    name: str
    channels: int
    samples: int
    source_rate: int
    open: Callable[[], Iterator[Float]]


Audio = str | Path | NDArray[Any] | AudioSource
"""A file, or samples in [-1, 1]: float [samples] or [channels, samples]."""


def open_source(audio: Audio, sample_rate: int, array_rate: int | None = None, kernel: Resampler = "soxr") -> AudioSource:
    """A path (any rate), an array [samples] or [channels, samples] of rate `array_rate` (None: the model's), or a source.

    `kernel` resamples the first two. Raises AudioError, InputError.
    """
    check_kernel(kernel)
    if isinstance(audio, AudioSource):
        return audio
    if isinstance(audio, str | Path):
        info = probe_audio(audio)
        samples = info.samples
        if info.format == "MP3":  # may lack a length header, and then that was a guess
            samples = sum(block.shape[1] for block in stream_audio(audio))
        length = resampled_length(samples, info.sample_rate, sample_rate, kernel)
        name = Path(audio).name
        return AudioSource(name, info.channels, length, info.sample_rate, lambda: stream_audio(audio, sample_rate, kernel=kernel))
    source_rate = sample_rate if array_rate is None else array_rate
    array = resample_audio(check_audio(audio), source_rate, sample_rate, kernel)
    return AudioSource("the array", array.shape[0], array.shape[1], source_rate, lambda: _cut(array))


def _cut(array: Float) -> Iterator[Float]:
    """Blocks of an array, so that reading it window by window does not copy what is left of it each time."""
    return (array[:, start : start + _BLOCK] for start in range(0, array.shape[1], _BLOCK))


class SampleReader:
    """Gives rising, possibly overlapping spans of a source; what lies before the last span's start is forgotten."""

    def __init__(self, source: AudioSource) -> None:
        self._source, self._blocks = source, source.open()
        self._start = 0
        self._buffer = np.zeros((source.channels, 0), np.float32)

    def read(self, start: int, stop: int) -> Float:
        """Samples start..stop: float32 [channels, stop - start]; zeros past the end. Raises AudioError for a file that ends early."""
        pieces, held = [self._buffer[:, start - self._start :]], self._start + self._buffer.shape[1]
        wanted = min(stop, self._source.samples)
        while held < wanted:
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(f"{self._source.name} ends after {held} of {self._source.samples} samples; get the whole file")
            pieces.append(block[:, max(start - held, 0) :])
            held += block.shape[1]
        self._start, self._buffer = start, np.concatenate(pieces, axis=1)
        span = self._buffer[:, : stop - start]
        return np.pad(span, ((0, 0), (0, stop - start - span.shape[1])))
