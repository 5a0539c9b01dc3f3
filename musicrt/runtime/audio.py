"""Audio files and sample rates: reading, writing and resampling, block by block so that hours of audio fit in little memory."""

from __future__ import annotations

import contextlib
import io
import logging
import numbers
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from musicrt.runtime.errors import AudioError, InputError, OutputError
from musicrt.runtime.files import new_file

Audio = npt.NDArray[np.float32]  # [channels, samples]

_LOG = logging.getLogger("musicrt")
_HIGHEST_RATE = 768_000
_MOST_CHANNELS = 64
_LARGEST_RATIO = 100  # upwards; a damaged header that says 1 Hz would blow a song up to terabytes
_BLOCK = 65_536  # samples; libsndfile's Vorbis encoder overruns the stack when given a whole song at once
_LARGEST_FILE = 2**32 - 2**16  # bytes; WAV and AIFF count theirs in 32 bits
_QUALITY = "VHQ"  # errors below those of 24-bit PCM, at about 1.2 times the cost of HQ, itself 1000 times faster than real time
_UNKNOWN_LENGTH = 2**62  # libsndfile gives more "frames" than this for a FLAC stream of unknown length
_MP3_SLACK = 2 * 1152  # samples; without a length header the length is a guess, off by up to two frames even at constant bitrate
_MP3_TAGS = 16_384  # bytes of tags that may follow the last frame
_WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}  # bytes


class _Bad(NamedTuple):
    total: int
    channel: int
    sample: int


class _Format(NamedTuple):
    name: str
    subtype: str
    channels: int = _MOST_CHANNELS
    rate: int = _HIGHEST_RATE
    size: float = float("inf")


# PCM_24 loses nothing audible, and unlike FLOAT every player opens it.
_FORMATS = {
    ".wav": _Format("WAV", "PCM_24", size=_LARGEST_FILE),
    ".flac": _Format("FLAC", "PCM_24", channels=8),
    ".ogg": _Format("OGG", "VORBIS", rate=200_000),  # libvorbis crashes above
    ".opus": _Format("OGG", "OPUS"),
    ".mp3": _Format("MP3", "MPEG_LAYER_III", channels=2),
    ".aiff": _Format("AIFF", "PCM_24", size=_LARGEST_FILE),
    ".aif": _Format("AIFF", "PCM_24", size=_LARGEST_FILE),
    ".caf": _Format("CAF", "PCM_24"),
    ".w64": _Format("W64", "PCM_24"),
    ".rf64": _Format("RF64", "PCM_24"),
}


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file says of itself. `samples` is per channel; for an MP3 without a length header it is an estimate."""

    path: Path
    sample_rate: int
    channels: int
    samples: int
    format: str
    subtype: str


def probe_audio(path: str | Path) -> AudioInfo:
    """Read a file's header (and, where that gives no length, count the samples by decoding). Raises AudioError."""
    path = Path(path)
    file, disk = _open_source(path)
    with disk, file:
        info = AudioInfo(path, file.samplerate, file.channels, file.frames, file.format, file.subtype)
    if info.samples < _UNKNOWN_LENGTH:
        return info
    return replace(info, samples=sum(block.shape[1] for block in stream_audio(path)))


def read_audio(path: str | Path, sample_rate: int | None = None) -> tuple[Audio, int]:
    """Read a whole file as float32 [channels, samples], resampled when `sample_rate` (Hz) differs from its own.

    Integer PCM is scaled to [-1, 1). Returns the audio and its rate. Raises AudioError, InputError.
    """
    channels, rate, blocks = _open_stream(path, sample_rate, _BLOCK)
    return _join(blocks, channels), rate


def stream_audio(path: str | Path, sample_rate: int | None = None, block: int = _BLOCK) -> Iterator[Audio]:
    """Yield the samples of `read_audio` as fresh float32 [channels, n] blocks, decoding `block` samples at a time.

    n is `block` or, after resampling, near its share; an empty file yields nothing. The header is checked in the call itself.
    Raises AudioError, InputError.
    """
    return _open_stream(path, sample_rate, block)[2]


def resample_audio(audio: npt.ArrayLike, source_rate: int, target_rate: int) -> Audio:
    """Resample [channels, samples] to float32 [channels, ceil(samples * target_rate / source_rate)]; equal rates change nothing.

    Raises InputError.
    """
    checked = check_audio(audio)
    if _check_rate(source_rate) == _check_rate(target_rate):
        return checked
    return _join(resample_blocks([checked], len(checked), source_rate, target_rate), len(checked))


def resample_blocks(blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int) -> Iterator[Audio]:
    """Resample consecutive float32 [channels, n] blocks. Together they give what `resample_audio` gives for the whole.

    Raises InputError for a wrong rate, in the call itself.
    """
    if _check_rate(source_rate) == _check_rate(target_rate):
        return iter(blocks)
    return _resampled(blocks, channels, source_rate, target_rate)


def check_audio(array: npt.ArrayLike, name: str = "audio") -> Audio:
    """Give a user's array as C-contiguous float32 [channels, samples] (itself, if it is that already); [samples] becomes [1, samples].

    Raises InputError for a wrong dtype or shape, and for NaN or infinity.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: got {type(array).__name__}, expected a numpy array [channels, samples]; convert it first")
    if array.dtype.kind in "iu":
        half = 2 ** (8 * array.dtype.itemsize - 1)
        how = f"divide by {half}" if array.dtype.kind == "i" else f"subtract {half}, then divide by {half}"
        raise InputError(f"{name}: got dtype {array.dtype}, expected float32 in [-1, 1]; {how} first")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{name}: got dtype {array.dtype}, expected float16, float32 or float64 in [-1, 1]; convert it first")
    if array.ndim not in (1, 2):
        raise InputError(f"{name}: got shape {array.shape}, expected [channels, samples]; pass one piece of audio at a time")
    channels, samples = array.shape if array.ndim == 2 else (1, len(array))
    if channels > _MOST_CHANNELS >= samples:
        raise InputError(f"{name}: got shape {array.shape}, which looks like (samples, channels); pass {name}.T")
    if channels == 0:
        raise InputError(f"{name}: got shape {array.shape}, expected at least one channel")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such
        audio = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    if bad := _find_bad(audio):
        raise InputError(f"{name}: got {bad.total} NaN or infinite values, the first at channel {bad.channel}, sample {bad.sample}")
    return audio


class AudioWriter:
    """Write an audio file block by block; use it in a `with` block. The file appears when that ends well, otherwise nothing does.

    The suffix of `path` gives the format, `subtype` its encoding (24-bit PCM where there is a choice).
    Raises AudioError for what the format can't hold, OutputError for what the disk can't.
    """

    def __init__(self, path: str | Path, sample_rate: int, channels: int, subtype: str | None = None) -> None:
        self.path, self.sample_rate = Path(path), _check_rate(sample_rate)
        self._format, subtype = _choose_format(self.path, self.sample_rate, channels, subtype)
        self.channels = int(channels)
        self._samples = self._clipped = 0
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(new_file(self.path))
            self._disk = stack.enter_context(_Disk(self._temporary, "wb"))
            try:
                self._file = _SoundFile(self._disk, "w", self.sample_rate, self.channels, subtype, format=self._format.name)
            except soundfile.LibsndfileError as error:
                what = f"{self._format.name} {subtype} at {sample_rate} Hz with {channels} channels"
                raise AudioError(f"can't write {self.path} as {what}: {_reason(error)}") from error
            self._stack = stack.pop_all()

    def write(self, block: npt.ArrayLike) -> None:
        """Append [channels, n] samples; values beyond [-1, 1] are clipped. Raises InputError, AudioError, OutputError."""
        audio = check_audio(block, "block")
        if self._file.closed:
            raise InputError(f"{self.path} is closed already; open a new AudioWriter")
        if len(audio) != self.channels:
            raise InputError(f"block: got {len(audio)} channels, expected the {self.channels} that {self.path} was opened with")
        for start in range(0, audio.shape[1], _BLOCK):
            part = audio[:, start : start + _BLOCK]
            self._clipped += int(np.count_nonzero(np.abs(part) > 1))
            with self._as_output_error():
                self._file.write(np.ascontiguousarray(part.T.clip(-1, 1)))
            if self._disk.tell() > self._format.size:
                raise AudioError(f"{self.path}: {self._format.name} can't hold more than 4 GiB; write .flac, .w64 or .rf64 instead")
        self._samples += audio.shape[1]

    def close(self) -> None:
        """Finish the file and put it in place; a second call does nothing. Raises AudioError, OutputError."""
        with self._stack:
            if self._file.closed:
                return
            with self._as_output_error():
                self._file.close()
            if not self._samples and not _is_readable(self._temporary):
                raise AudioError(f"{self.path}: got no samples, and {self._format.name} can't hold none; write .wav instead")
        if self._clipped:
            _LOG.info("%s: %d samples beyond full scale were clipped", self.path.name, self._clipped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(soundfile.LibsndfileError):
            self._file.close()
        # Not `error` itself: new_file would take an OSError from the caller's own code for a failed write.
        self._stack.__exit__(GeneratorExit, GeneratorExit(), None)

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise OutputError(f"can't write {self.path}: {_reason(self._disk.error or error)}; check the free space") from error
        if self._disk.error:
            raise OutputError(f"can't write {self.path}: {_reason(self._disk.error)}; check the free space") from self._disk.error


def write_audio(path: str | Path, audio: npt.ArrayLike, sample_rate: int, subtype: str | None = None) -> None:
    """Write [channels, samples] to a file with an AudioWriter. Raises InputError, AudioError, OutputError."""
    checked = check_audio(audio)
    with AudioWriter(path, sample_rate, len(checked), subtype) as writer:
        writer.write(checked)


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Goes front to back only: soundfile seeks after every block of a seekable file, which garbles Opus and slows MP3."""

    def seekable(self) -> bool:
        return False


class _Disk(io.FileIO):
    """Keeps the first OSError in `error`: libsndfile's callbacks would lose it, and its encoders ignore the last failed write."""

    error: OSError | None = None

    def __del__(self) -> None:
        self.close()  # else a stream that nobody started to read would end in a ResourceWarning

    def seek(self, offset: int, whence: int = 0) -> int:
        with contextlib.suppress(OSError):  # a damaged header can send libsndfile to before the start: stay, as lseek does
            super().seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            self.error = self.error or error
            return 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


def _open_source(path: Path) -> tuple[_SoundFile, _Disk]:
    if path.suffix.lower() == ".raw":
        raise AudioError(f"can't read {path}: raw samples tell neither rate nor channels; convert the file to .wav first")
    with contextlib.ExitStack() as stack:
        try:
            if not path.is_file():
                raise AudioError(f"can't read {path}: {'not a file' if path.exists() else 'no such file'}; expected an audio file")
            disk = stack.enter_context(_Disk(path))
            if os.fstat(disk.fileno()).st_size == 0:
                raise AudioError(f"can't read {path}: the file is empty (0 bytes); expected an audio file")
            file = stack.enter_context(_SoundFile(disk))
        except OSError as error:
            raise AudioError(f"can't read {path}: {_reason(error)}; expected a readable audio file") from error
        except soundfile.LibsndfileError as error:
            raise AudioError(f"can't read {path}: {_reason(disk.error or error)}; expected an intact .wav, .flac or such") from error
        if file.samplerate > _HIGHEST_RATE:
            raise AudioError(f"can't read {path}: its header says {file.samplerate} Hz, expected at most {_HIGHEST_RATE} Hz")
        stack.pop_all()
    return file, disk


def _open_stream(path: str | Path, sample_rate: int | None, block: int) -> tuple[int, int, Iterator[Audio]]:
    """The channels, the rate of the result, and the blocks."""
    if not isinstance(block, numbers.Integral) or block < 1:
        raise InputError(f"block: got {block!r}, expected a whole number of samples of at least 1")
    rate = None if sample_rate is None else _check_rate(sample_rate)
    path = Path(path)
    file, disk = _open_source(path)
    blocks = _only_finite(path, _decode(path, file, disk, block))
    if rate is None or rate == file.samplerate:
        return file.channels, file.samplerate, blocks
    if rate > _LARGEST_RATIO * file.samplerate:
        disk.close()
        raise AudioError(f"can't resample {path} to {rate} Hz: its header says {file.samplerate} Hz; correct it first")
    _LOG.info("%s: resampled from %d Hz to %d Hz", path.name, file.samplerate, rate)
    return file.channels, rate, _resampled(blocks, file.channels, file.samplerate, rate)


def _decode(path: Path, file: _SoundFile, disk: _Disk, block: int) -> Iterator[Audio]:
    with disk, file:
        got = 0
        while True:
            try:
                samples = file.read(block, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{path}: damaged at or after sample {got}: {_reason(error)}; get an intact copy") from error
            if disk.error:
                raise AudioError(f"{path}: reading stopped at sample {got}: {_reason(disk.error)}; get an intact copy") from disk.error
            if not len(samples):
                break
            got += len(samples)
            yield np.ascontiguousarray(samples.T)
        _warn_of_missing(path, file, disk, got)


def _warn_of_missing(path: Path, file: _SoundFile, disk: _Disk, got: int) -> None:
    expected = _promised_samples(file)
    if expected - got > (_MP3_SLACK if file.format == "MP3" else 0):
        _LOG.warning("%s: expected %d samples as its header says, got %d; the file was cut short", path.name, expected, got)
    elif file.format == "MP3" and os.fstat(disk.fileno()).st_size - disk.tell() > _MP3_TAGS:
        _LOG.warning("%s: got %d samples, with part of the file left over; it lacks a length header, so convert it first", path.name, got)


def _promised_samples(file: _SoundFile) -> int:
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
        if bad := _find_bad(block):
            total = bad.total + sum(int(np.count_nonzero(~np.isfinite(rest))) for rest in blocks)
            where = f"the first at channel {bad.channel}, sample {start + bad.sample}"
            raise AudioError(f"{path}: got {total} NaN or infinite values, {where}; repair the file first")
        start += block.shape[1]
        yield block


def _find_bad(audio: Audio) -> _Bad | None:
    bad = ~np.isfinite(audio)
    if not bad.any():
        return None
    sample = int(bad.any(axis=0).argmax())
    return _Bad(int(np.count_nonzero(bad)), int(bad[:, sample].argmax()), sample)


def _resampled(blocks: Iterable[Audio], channels: int, source_rate: int, target_rate: int) -> Iterator[Audio]:
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
    rest = resampler.resample_chunk(silence, last=True)[: -(-taken * target_rate // source_rate) - given]
    if len(rest):
        yield np.ascontiguousarray(rest.T)


def _join(blocks: Iterable[Audio], channels: int) -> Audio:
    return np.concatenate([np.zeros((channels, 0), np.float32), *blocks], axis=1)


def _choose_format(path: Path, sample_rate: int, channels: int, subtype: str | None) -> tuple[_Format, str]:
    available = soundfile.available_formats()
    formats = {suffix: form for suffix, form in _FORMATS.items() if form.name in available}
    form = formats.get(path.suffix.lower())
    if form is None:
        raise AudioError(f"can't write {path}: got suffix {path.suffix!r}, expected one of {', '.join(formats)}")
    if not isinstance(channels, numbers.Integral) or not 1 <= channels <= form.channels:
        raise AudioError(f"can't write {path}: got {channels!r} channels, expected 1 to {form.channels} in {form.name}")
    if sample_rate > form.rate:
        raise AudioError(f"can't write {path}: got {sample_rate} Hz, expected at most {form.rate} Hz in {form.name}; resample first")
    subtype = subtype or form.subtype
    if not soundfile.check_format(form.name, subtype):
        legal = ", ".join(soundfile.available_subtypes(form.name))
        raise AudioError(f"can't write {path}: got subtype {subtype!r}, expected one of {legal} in {form.name}")
    return form, subtype


def _check_rate(rate: int) -> int:
    if not isinstance(rate, numbers.Integral) or isinstance(rate, bool) or not 1 <= rate <= _HIGHEST_RATE:
        raise InputError(f"sample rate: got {rate!r}, expected a whole number of Hz from 1 to {_HIGHEST_RATE}")
    return int(rate)


def _is_readable(path: Path) -> bool:
    try:
        soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return True


def _reason(error: OSError | soundfile.LibsndfileError) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else error.strerror or str(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
