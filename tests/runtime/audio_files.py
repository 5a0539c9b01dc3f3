"""Signals and files that the tests of audio share."""

from __future__ import annotations

import contextlib
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from musicrt.runtime.waveform import Audio

SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".caf", ".w64", ".rf64"]


def noise(channels: int, samples: int, seed: int = 0) -> Audio:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples)).astype(np.float32)


def sine(frequency: float, rate: int, seconds: float = 1.0) -> Audio:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)[None]


def save(path: Path, audio: Audio, rate: int = 44100, subtype: str | None = None) -> Path:
    """Write with soundfile alone, so that reading is not tested against our own writer."""
    kind = {".opus": "OGG", ".aif": "AIFF"}.get(path.suffix, path.suffix[1:].upper())
    soundfile.write(path, audio.T, rate, format=kind, subtype=subtype or ("OPUS" if path.suffix == ".opus" else None))
    return path


def wave_file(path: Path, data: bytes, promised: int, riff: int | None = None) -> Path:
    """A stereo 16-bit WAV file whose header promises `promised` bytes of samples."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 44100, 176400, 4, 16)
    head = struct.pack("<4sI4s", b"RIFF", 36 + promised if riff is None else riff, b"WAVE")
    path.write_bytes(head + form + struct.pack("<4sI", b"data", promised) + data)
    return path


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
