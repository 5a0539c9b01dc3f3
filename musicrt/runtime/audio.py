"""Reading audio files, as a whole or block by block, so that hours of audio fit in little memory."""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.limits import check_limit
from musicrt.runtime.resampling import Resampler, check_kernel, join_blocks, resample_blocks
from musicrt.runtime.soundfiles import Disk, OneWayFile, reason_of
from musicrt.runtime.w64 import read_comment
from musicrt.runtime.waveform import HIGHEST_RATE, Audio, check_rate, find_bad

_LOG = logging.getLogger("musicrt")
_LARGEST_RATIO = 100  # upwards; a damaged header that says 1 Hz would blow a song up to terabytes
_BLOCK = 65_536  # samples
_UNKNOWN_LENGTH = 2**62  # libsndfile gives more "frames" than this for a FLAC stream of unknown length
_MP3_SLACK = 2 * 1152  # samples; without a length header the length is a guess, off by up to two frames even at constant bitrate
_MP3_TAGS = 16_384  # bytes of tags that may follow the last frame
_WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}  # bytes


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file says of itself. `samples` is per channel; for an MP3 without a length header it is an estimate. `comment`: empty
    where it has none.
    """

    path: Path
    sample_rate: int
    channels: int
    samples: int
    format: str
    subtype: str
    comment: str


def probe_audio(path: str | Path) -> AudioInfo:
    """Read a file's header (and, where that gives no length, count the samples by decoding). Raises AudioError."""
    path = Path(path)
    file, disk = _open_source(path)
    with disk, file:
        comment = read_comment(disk) if file.format == "W64" else str(file.comment)
        info = AudioInfo(path, file.samplerate, file.channels, file.frames, file.format, file.subtype, comment)
    if info.samples < _UNKNOWN_LENGTH:
        return info
    return replace(info, samples=sum(block.shape[1] for block in stream_audio(path)))


def read_audio(path: str | Path, sample_rate: int | None = None, kernel: Resampler = "soxr") -> tuple[Audio, int]:
    """Read a whole file as float32 [channels, samples], resampled with `kernel` when `sample_rate` (Hz) differs from its own.

    Integer PCM is scaled to [-1, 1). Returns the audio and its rate. Raises AudioError, InputError.
    """
    channels, rate, blocks = _open_stream(path, sample_rate, _BLOCK, kernel)
    return join_blocks(_held(Path(path), blocks), channels), rate


def stream_audio(path: str | Path, sample_rate: int | None = None, block: int = _BLOCK, kernel: Resampler = "soxr") -> Iterator[Audio]:
    """Yield the samples of `read_audio` as fresh float32 [channels, n] blocks, decoding `block` samples at a time.

    n is `block` or, after resampling, near its share (with "sinc" up to 2^18); an empty file yields nothing. The header is checked in
    the call itself. Raises AudioError, InputError.
    """
    return _open_stream(path, sample_rate, block, kernel)[2]


def _open_source(path: Path) -> tuple[OneWayFile, Disk]:
    if path.suffix.lower() == ".raw":
        raise AudioError(f"can't read {path}: raw samples tell neither rate nor channels; convert the file to .wav first")
    with contextlib.ExitStack() as stack:
        try:
            if not path.is_file():
                raise AudioError(f"can't read {path}: {'not a file' if path.exists() else 'no such file'}; expected an audio file")
            disk = stack.enter_context(Disk(path))
            if os.fstat(disk.fileno()).st_size == 0:
                raise AudioError(f"can't read {path}: the file is empty (0 bytes); expected an audio file")
            file = stack.enter_context(OneWayFile(disk))
        except OSError as error:
            raise AudioError(f"can't read {path}: {reason_of(error)}; expected a readable audio file") from error
        except soundfile.LibsndfileError as error:
            raise AudioError(f"can't read {path}: {reason_of(disk.error or error)}; expected an intact .wav, .flac or such") from error
        if file.samplerate > HIGHEST_RATE:
            raise AudioError(f"can't read {path}: its header says {file.samplerate} Hz, expected at most {HIGHEST_RATE} Hz")
        check_limit("audio_channels", file.channels, f"{path} has {file.channels} channels", AudioError)
        if file.frames < _UNKNOWN_LENGTH:
            _check_length(path, file, file.frames)
        stack.pop_all()
    return file, disk


def _check_length(path: Path, file: OneWayFile, samples: int) -> None:
    """Raises AudioError for a file that is too long; a few bytes of FLAC or Opus may stand for a minute of silence."""
    seconds = samples / file.samplerate
    check_limit("audio_seconds", seconds, f"{path} lasts {seconds:.0f} s or more", AudioError)


def _open_stream(path: str | Path, sample_rate: int | None, block: int, kernel: Resampler) -> tuple[int, int, Iterator[Audio]]:
    """The channels, the rate of the result, and the blocks."""
    if not isinstance(block, numbers.Integral) or block < 1:
        raise InputError(f"block: got {block!r}, expected a whole number of samples of at least 1")
    rate = None if sample_rate is None else check_rate(sample_rate)
    check_kernel(kernel)
    path = Path(path)
    file, disk = _open_source(path)
    blocks = _only_finite(path, _decode(path, file, disk, block))
    if rate is None or rate == file.samplerate:
        return file.channels, file.samplerate, blocks
    if rate > _LARGEST_RATIO * file.samplerate:
        disk.close()
        raise AudioError(f"can't resample {path} to {rate} Hz: its header says {file.samplerate} Hz; correct it first")
    fields = {"event": "audio_resampled", "file": path.name, "source_rate": file.samplerate, "sample_rate": rate}
    _LOG.info("%s: resampled from %d Hz to %d Hz", path.name, file.samplerate, rate, extra=fields)
    return file.channels, rate, resample_blocks(blocks, file.channels, file.samplerate, rate, kernel)


def _decode(path: Path, file: OneWayFile, disk: Disk, block: int) -> Iterator[Audio]:
    with disk, file:
        got = 0
        while True:
            try:
                samples = file.read(block, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{path}: damaged at or after sample {got}: {reason_of(error)}; get an intact copy") from error
            if disk.error:
                raise AudioError(f"{path}: reading stopped at sample {got}: {reason_of(disk.error)}; get an intact copy") from disk.error
            if not len(samples):
                break
            got += len(samples)
            _check_length(path, file, got)
            yield np.ascontiguousarray(samples.T)
        _warn_of_missing(path, file, disk, got)


def _held(path: Path, blocks: Iterator[Audio]) -> Iterator[Audio]:
    """Blocks that are all kept. Raises AudioError where they are too many; a stream of the same file may well be read."""
    values = 0
    for block in blocks:
        values += block.size
        check_limit("audio_values", values, f"{path} has {values} samples or more in all channels, too many to be held at once", AudioError)
        yield block


def _warn_of_missing(path: Path, file: OneWayFile, disk: Disk, got: int) -> None:
    expected = _promised_samples(file)
    if expected - got > (_MP3_SLACK if file.format == "MP3" else 0):
        fields = {"event": "audio_cut_short", "file": path.name, "expected": expected, "got": got}
        _LOG.warning("%s: expected %d samples as its header says, got %d; the file was cut short", path.name, expected, got, extra=fields)
    elif file.format == "MP3" and os.fstat(disk.fileno()).st_size - disk.tell() > _MP3_TAGS:
        fields = {"event": "audio_left_over", "file": path.name, "got": got}
        message = "%s: got %d samples, with part of the file left over; it lacks a length header, so convert it first"
        _LOG.warning(message, path.name, got, extra=fields)


def _promised_samples(file: OneWayFile) -> int:
    """How many samples the header promises. libsndfile's `frames` is already cut to what a WAV file holds; its log is not."""
    frames = file.frames if file.frames < _UNKNOWN_LENGTH else 0
    found = re.search(r"^data : (\d+) \(should be", file.extra_info, re.MULTILINE)
    width = _WIDTHS.get(file.subtype)
    if not found or not width:
        return frames
    size = int(found[1])
    is_streamed = any(abs(size - mark) < 2**16 for mark in (2**31, 2**32))  # what programs write that can't know the length
    return frames if is_streamed else size // (width * file.channels)


def _only_finite(path: Path, blocks: Iterator[Audio]) -> Iterator[Audio]:
    start = 0
    for block in blocks:
        if bad := find_bad(block):
            total = bad.total + sum(int(np.count_nonzero(~np.isfinite(rest))) for rest in blocks)
            where = f"the first at channel {bad.channel}, sample {start + bad.sample}"
            raise AudioError(f"{path}: got {total} NaN or infinite values, {where}; repair the file first")
        start += block.shape[1]
        yield block
