"""What all systems that make music for videos share: files and folders."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.encoded import Encoded, write_encoded
from musicrt.runtime.errors import InputError, OutputError
from musicrt.runtime.files import new_file, sha256_of
from musicrt.runtime.muxing import check_mux_target, is_video_target, mux_audio
from musicrt.runtime.pipeline import Codec, options_in
from musicrt.runtime.record import Record
from musicrt.runtime.video import VIDEO_SUFFIXES

_LOG = logging.getLogger("musicrt")
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Music:
    """Finished music.

    blocks: gives it as float32 [channels, n], from the beginning each time it is called. encode: gives what `decode_encoded` makes it of,
    as it was before its loudness was changed; raises InputError for a model from no bundle.
    """

    blocks: Callable[[], Iterator[Float]]
    encode: Callable[[], Encoded]


class Generator(Codec):
    """A codec that also makes music for videos. Subclasses write `generate_stream` and `compose` beside what `Codec` asks for."""

    @property
    @abstractmethod
    def generate_stream(self) -> Callable[..., Iterator[Float]]:
        """A method `(video, **options)`: the music of one video in blocks float32 [channels, n], each as soon as it is there."""

    @property
    @abstractmethod
    def compose(self) -> Callable[..., Iterator[Music]]:
        """A method `(videos, **options)`: the music of each video as it is written into a file, in order.

        Its keyword-only parameters are options beside those of `generate_stream`. It checks all before it begins.
        """

    @property
    @abstractmethod
    def clip(self) -> Callable[..., Any]:
        """A method `(frames, rate, **options)`: what `generate_stream` takes as a video, of all its frames, RGB uint8 [frames, height,
        width, 3], `rate` of them a second. Its keyword-only parameters are those of `generate_stream` that are about frames.
        """

    @abstractmethod
    def rehearse(self, seconds: float, seed: int) -> None:
        """Make so much music for a video that is made up, and throw it away: what calibration listens to. Raises BackendError."""

    def generate_file(self, video: Any, target: str | Path, tokens: str | Path | None = None, **options: Any) -> int:
        """Write the music of a video into an audio file, or, where the suffix is that of a video, into a copy of it; the samples written.

        video: a path, or what else the system takes; for a copy, a path. tokens: also a file of encoded audio to write, from which
        `decode_file` makes the music as it was before its loudness was changed. Raises VideoError, AudioError, InputError, OutputError,
        BackendError.
        """
        self.check_options(options_in(self, "generate"), options)
        target = Path(target)
        _check_apart(video, target, *([] if tokens is None else [Path(tokens)]))
        if not is_video_target(target):
            AudioWriter.check_target(target, self.sample_rate, self.row_channels)
        elif isinstance(video, str | Path):
            check_mux_target(video, target, self.sample_rate, self.row_channels)
        else:
            raise InputError(f"got {target}, a video, and frames to make music for, expected the path of a video; or write an audio file")
        if tokens is not None:
            self._identity()  # before the work, as is a bad place for the file
        options = self._seeded("generate", options)
        with contextlib.nullcontext() if tokens is None else new_file(Path(tokens)) as temporary:
            (music,) = self.compose([video], **options)
            record = self._record(video, options)
            if temporary:
                write_encoded(temporary, dataclasses.replace(music.encode(), record=record))
            return self._write_music(video, target, music, record)

    def generate_folder(self, folder: str | Path, target: str | Path, **options: Any) -> list[Path]:
        """Write `<stem>_output.wav` and a copy of the video with the music, `<stem>_output` with its suffix, for each video of a folder.

        Videos whose `<stem>_output.wav` is there are left out. Everything is checked before the first is begun. The paths of the
        audio files written. Errors as of `generate_file`.
        """
        self.check_options(options_in(self, "generate"), options)
        options, todo = self._seeded("generate", options), self._plan_folder(Path(folder), Path(target))
        if not todo:
            return []
        with _folder(Path(target)):
            for video, (sound, copy) in todo.items():
                AudioWriter.check_target(sound, self.sample_rate, self.row_channels)
                check_mux_target(video, copy, self.sample_rate, self.row_channels)
            for (video, (sound, copy)), music in zip(todo.items(), self.compose(list(todo), **options), strict=True):
                record = self._record(video, options)
                self._write_music(video, copy, music, record)
                self._write_music(video, sound, music, record)  # the last, because it says that all is there
                _LOG.info("%s and %s written", sound, copy.name, extra={"event": "video_finished", "file": video.name})
        return [sound for sound, _ in todo.values()]

    def _plan_folder(self, folder: Path, target: Path) -> dict[Path, tuple[Path, Path]]:
        """What is to be written for each video. Raises InputError, OutputError."""
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected one with videos")
        if target.exists() and not target.is_dir():
            raise OutputError(f"can't write into {target}: it is not a folder; name one")
        videos = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
        videos = [path for path in videos if not path.name.startswith(".")]
        if not videos:
            raise InputError(f"{folder} holds no video; expected files such as .mp4 or .mkv")
        todo: dict[Path, tuple[Path, Path]] = {}
        for video in videos:
            suffix = video.suffix if is_video_target(video) else ".mkv"  # which holds any stream
            sound, copy = (target / f"{video.stem}_output{end}" for end in (".wav", suffix))
            if other := next((path for path, pair in todo.items() if pair[0] == sound), None):
                raise InputError(f"{folder} holds {other.name} and {video.name}, whose music would have one name; rename one")
            if sound.exists():
                _LOG.info("%s left out: %s is there", video.name, sound, extra={"event": "video_left_out", "file": video.name})
            else:
                todo[video] = sound, copy
        return todo

    def _record(self, video: Any, options: Mapping[str, Any]) -> Record:
        """That of one video's music."""
        file = sha256_of(Path(video)) if isinstance(video, str | Path) else None
        return self.record("generate", **options).model_copy(update={"input": file})

    def _write_music(self, video: Any, target: Path, music: Music, record: Record) -> int:
        written = 0

        def counted() -> Iterator[Float]:
            nonlocal written
            for block in music.blocks():
                written += block.shape[1]
                yield block

        if is_video_target(target):
            mux_audio(video, target, counted(), self.sample_rate, self.row_channels, record)
            return written
        with AudioWriter(target, self.sample_rate, self.row_channels, record=record) as writer:
            for block in counted():
                writer.write(block)
        return written


def _check_apart(video: Any, *written: Path) -> None:
    """Raises InputError where a file to write is another one, or the video."""
    if len({path.resolve() for path in written}) < len(written):
        raise InputError(f"got {written[0]} twice, expected one file for the music and another one for its tokens")
    for path in written:
        if isinstance(video, str | Path) and path.exists() and Path(video).exists() and path.samefile(video):
            raise InputError(f"got {path} as the video and as the file to write, expected another one to write")


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder to write into; one that was not there before goes again if it stays empty. Raises OutputError."""
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write into {path}: {error.strerror}; check the place and its permissions") from error
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
