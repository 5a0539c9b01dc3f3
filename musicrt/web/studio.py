"""A bundle at work for the page: one job at a time, each into a folder of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from musicrt.runtime.audio import stream_audio
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import InputError, MusicRTError
from musicrt.runtime.generator import Generator
from musicrt.runtime.model import load
from musicrt.runtime.muxing import check_mux_target, is_video_target, mux_audio
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.precision import Precision
from musicrt.runtime.record_reader import read_record
from musicrt.web.settings import own_options, read_settings, settings_of
from musicrt.web.spectrogram import draw_spectrograms

Report = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and what is being done; may raise `Cancelled` to stop."""


@dataclass(frozen=True)
class Result:
    """The files of a job: the audio, a picture of it beside the input, a video with the music or None, and all to download."""

    audio: Path
    picture: Path
    video: Path | None
    files: list[Path]
    facts: str


class Studio:
    """An opened bundle. Jobs of several threads wait for each other, so that each has the whole machine."""

    def __init__(self, codec: Codec, title: str) -> None:
        self.codec, self.title, self.settings = codec, title, settings_of(codec)
        self._turn = threading.Lock()

    @property
    def wants_video(self) -> bool:
        return isinstance(self.codec, Generator)

    def run(self, source: str | Path | None, values: Sequence[Any], folder: Path, report: Report) -> Result:
        """Send a file through the bundle. values: of the settings, in their order, None where one is left alone.

        report: called before the work as well, once it is the turn of this job. Raises MusicRTError, whose words name the files of the
        user by their names only, and not those of this machine.
        """
        if source is None:
            raise InputError(f"got no file, expected {'a video' if self.wants_video else 'an audio file'}; drop one on the page first")
        source = Path(source)
        try:
            with self._turn:
                report(0, 1, "beginning")  # a job that was stopped while it waited must not take a step
                return self._run(source, read_settings(self.settings, values), folder, report)
        except MusicRTError as error:
            raise type(error)(_without_folders(str(error), [folder, source.parent, *_folders(values)])) from error
        except MemoryError:
            raise MusicRTError("not enough memory for a file of this length; try a shorter one") from None

    def _run(self, source: Path, options: Mapping[str, Any], folder: Path, report: Report) -> Result:
        started = time.perf_counter()
        job = source, options, folder, report
        made = _generate(self.codec, *job) if isinstance(self.codec, Generator) else _roundtrip(self.codec, *job)
        seconds = time.perf_counter() - started
        report(1, 1, "drawing pictures")
        picture = folder / "spectrograms.png"
        heard = {"result": made.audio} if self.wants_video else {"input": source, "result": made.audio}
        draw_spectrograms(heard, picture)
        place = f"{self.codec.backend.name} in {self.codec.backend.precision}"
        rate, encoded = self.codec.sample_rate, load_encoded(made.encoded)
        words = f"{encoded.kind} {list(encoded.values.shape)}, {encoded.bit_rate / 1000:.3g} kbps"
        facts = f"{made.samples / rate:.2f} s at {rate} Hz in {seconds:.1f} s on {place}; {words}"
        files = [path for path in (made.audio, made.video, made.encoded) if path]
        return Result(made.audio, picture, made.video, files, facts)


@contextlib.contextmanager
def open_studios(
    bundles: Sequence[Path], backend: str = "auto", threads: int | None = None, precision: Precision | None = None
) -> Iterator[list[Studio]]:
    """One for each bundle, named after its folder, closed at the end. Raises BundleError, BackendError; InputError for one given twice."""
    folders = [bundle.resolve() for bundle in bundles]
    if len(set(folders)) < len(folders):
        raise InputError(f"got {', '.join(map(str, bundles))}, expected each bundle once")
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"backend": backend, "threads": threads, "precision": precision}
        yield [Studio(stack.enter_context(load(path, **options)), path.name) for path in folders]


class _Made(NamedTuple):
    audio: Path
    samples: int
    encoded: Path
    video: Path | None = None


def _roundtrip(codec: Codec, source: Path, options: Mapping[str, Any], folder: Path, report: Report) -> _Made:
    audio, tokens = folder / f"{source.stem}_decoded.wav", folder / f"{source.stem}.safetensors"
    encoding, decoding = own_options(codec.encode_source, options), own_options(codec.decode_stream, options)
    codec.check_decoding(**decoding)
    encoded = codec.encode_file(source, tokens, on_progress=partial(_say, report, "encoding"), **encoding)
    samples = codec.decode_encoded(encoded, audio, on_progress=partial(_say, report, "decoding"), **decoding)
    return _Made(audio, samples, tokens)


def _generate(codec: Generator, source: Path, options: Mapping[str, Any], folder: Path, report: Report) -> _Made:
    audio, tokens = folder / f"{source.stem}_music.wav", folder / f"{source.stem}.safetensors"
    suffix = source.suffix if is_video_target(source) else ".mkv"  # which holds any stream
    video = folder / f"{source.stem}_with_music{suffix}"
    check_mux_target(source, video, codec.sample_rate, codec.row_channels)
    samples = codec.generate_file(source, audio, tokens, on_progress=partial(_say, report, "making music"), **options)
    report(1, 1, "putting it into the video")
    mux_audio(source, video, stream_audio(audio), codec.sample_rate, codec.row_channels, read_record(audio))
    return _Made(audio, samples, tokens, video)


def _say(report: Report, what: str, done: int, total: int) -> None:
    report(done, total, what)


def _folders(values: Sequence[Any]) -> list[Path]:
    """Those of files among the settings."""
    return [Path(value).parent for value in values if isinstance(value, str) and Path(value).is_absolute()]


def _without_folders(message: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    return message
