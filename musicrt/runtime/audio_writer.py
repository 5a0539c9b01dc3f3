"""Writing audio files block by block, so that hours of audio fit in little memory."""

from __future__ import annotations

import contextlib
import logging
import numbers
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import soundfile

from musicrt.runtime.errors import AudioError, InputError, OutputError
from musicrt.runtime.files import new_file
from musicrt.runtime.soundfiles import Disk, OneWayFile, reason_of
from musicrt.runtime.w64 import CommentedDisk
from musicrt.runtime.waveform import HIGHEST_RATE, MOST_CHANNELS, check_audio, check_rate

if TYPE_CHECKING:
    from musicrt.runtime.record import Record

_LOG = logging.getLogger("musicrt")
_BLOCK = 65_536  # samples; libsndfile's Vorbis encoder overruns the stack when given a whole song at once
_LARGEST_FILE = 2**32 - 2**16  # bytes; WAV and AIFF count theirs in 32 bits


class _Format(NamedTuple):
    name: str
    subtype: str
    channels: int = MOST_CHANNELS
    rate: int = HIGHEST_RATE
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


SUFFIXES = frozenset(_FORMATS)
"""Of the files that can be written, where the installed libsndfile can."""


class AudioWriter:
    """Write an audio file block by block; use it in a `with` block. The file appears when that ends well, otherwise nothing does.

    The suffix of `path` gives the format, `subtype` its encoding (24-bit PCM where there is a choice). record: what the audio was made
    with, for the comment of the file.
    Raises AudioError for what the format can't hold, OutputError for what the disk can't.
    """

    def __init__(self, path: str | Path, sample_rate: int, channels: int, subtype: str | None = None, record: Record | None = None) -> None:
        self.path, self.sample_rate = Path(path), check_rate(sample_rate)
        self._format, subtype = _choose_format(self.path, self.sample_rate, channels, subtype)
        self.channels = int(channels)
        self._samples = self._clipped = 0
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(new_file(self.path))
            comment = "" if record is None else record.line
            in_list = comment if self._format.name == "W64" else ""
            self._disk = stack.enter_context(CommentedDisk(self._temporary, in_list) if in_list else Disk(self._temporary, "wb"))
            try:
                self._file = OneWayFile(self._disk, "w", self.sample_rate, self.channels, subtype, format=self._format.name)
                if comment and not in_list:
                    self._file.comment = comment
            except soundfile.LibsndfileError as error:
                what = f"{self._format.name} {subtype} at {sample_rate} Hz with {channels} channels"
                raise AudioError(f"can't write {self.path} as {what}: {reason_of(error)}") from error
            self._stack = stack.pop_all()

    @classmethod
    def check_target(cls, path: str | Path, sample_rate: int, channels: int) -> None:
        """Open a writer and drop it, so that a bad target fails before the work. Raises AudioError, OutputError."""
        cls(path, sample_rate, channels).discard()

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
            fields = {"event": "audio_clipped", "file": self.path.name, "samples": self._clipped}
            _LOG.info("%s: %d samples beyond full scale were clipped", self.path.name, self._clipped, extra=fields)

    def discard(self) -> None:
        """Write no file after all; what `path` held before stays."""
        with contextlib.suppress(soundfile.LibsndfileError):
            self._file.close()
        # Not the caller's own error: new_file would take an OSError for a failed write.
        self._stack.__exit__(GeneratorExit, GeneratorExit(), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise OutputError(f"can't write {self.path}: {reason_of(self._disk.error or error)}; check the free space") from error
        if self._disk.error:
            raise OutputError(f"can't write {self.path}: {reason_of(self._disk.error)}; check the free space") from self._disk.error


def write_audio(path: str | Path, audio: npt.ArrayLike, sample_rate: int, subtype: str | None = None) -> None:
    """Write [channels, samples] to a file with an AudioWriter. Raises InputError, AudioError, OutputError."""
    checked = check_audio(audio)
    with AudioWriter(path, sample_rate, len(checked), subtype) as writer:
        writer.write(checked)


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


def _is_readable(path: Path) -> bool:
    try:
        soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return True
