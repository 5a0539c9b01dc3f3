"""What is done with every file: one way through the pipeline of one bundle, with one set of options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import musicrt
from musicrt.runtime.audio import probe_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import BundleError, InputError
from musicrt.runtime.muxing import is_video_target
from musicrt.runtime.pipeline import WAYS, options_of, ways_in
from musicrt.runtime.precision import Precision
from musicrt.runtime.progress import Progress, ignore_progress
from musicrt.runtime.record import Way
from musicrt.runtime.registry import system_module
from musicrt.runtime.video import VIDEO_SUFFIXES, Video

ENCODED_SUFFIX = ".safetensors"
AUDIO_SUFFIXES = frozenset(
    f".{name}" for name in ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "aifc", "caf", "w64", "rf64", "au", "snd")
)
"""What audio files are called, in lower case; those of other names are read too, if a list names them."""

_READ: Mapping[Way, frozenset[str]] = {
    "encode": AUDIO_SUFFIXES,
    "decode": frozenset({ENCODED_SUFFIX}),
    "generate": VIDEO_SUFFIXES,
}


@dataclass(frozen=True)
class Job:
    """Made by `plan_job`; it travels to every worker, where `bundle` has to be the same folder.

    identity: of the bundle. suffix: of every file that is made, and with it its format. threads: CPU threads of a worker.
    """

    way: Way
    bundle: Path
    system: str
    identity: str
    suffix: str
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    precision: Precision | None = None
    threads: int | None = None

    @property
    def suffixes(self) -> frozenset[str]:
        """Of the files that a folder is searched for, in lower case."""
        return _READ[self.way]

    @property
    def description(self) -> dict[str, Any]:
        """All that results depend on, as JSON has it."""
        options = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in self.options.items()}
        facts = {"format": "musicrt-bulk 1", "way": self.way, "system": self.system, "identity": self.identity}
        return {**facts, "suffix": self.suffix, "precision": self.precision, "options": options}

    def open(self) -> Any:
        """The pipeline. Raises BackendError, and BundleError, also where the folder holds another bundle than when the job was planned."""
        codec = musicrt.load(self.bundle, backend=self.backend, threads=self.threads, precision=self.precision)
        if codec.model.identity != self.identity:
            codec.close()
            found = f"{self.bundle} is the bundle {codec.model.identity[:12]} here, expected {self.identity[:12]}"
            raise BundleError(f"{found}; give every node the same files")
        return codec

    def check(self) -> None:
        """What can only be told where the work is done. Raises what `open` does, and InputError for a value that an option can't have."""
        with self.open() as codec:
            if self.way == "decode":
                codec.check_decoding(**self.options)

    def measure(self, source: Path) -> float:
        """Seconds of audio or video in a file. Raises InputError."""
        if self.way == "encode":
            info = probe_audio(source)
            return info.samples / info.sample_rate
        return load_encoded(source).seconds if self.way == "decode" else Video(source).duration

    def run(self, codec: Any, source: Path, target: Path, on_progress: Progress = ignore_progress) -> None:
        """Make one file of another; `target` appears when it is whole. Raises InputError, OutputError, BackendError."""
        call = {"encode": "encode_file", "decode": "decode_file", "generate": "generate_file"}[self.way]
        getattr(codec, call)(source, target, on_progress=on_progress, **self.options)

    def with_options(self, options: Mapping[str, Any]) -> Job:
        """The same with other options. Raises InputError for one that the system has not."""
        pipeline = _pipeline_of(self.system)
        known = [name for method in WAYS[self.way] for name in options_of(getattr(pipeline, method))]
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"{self.system} has no option {unknown[0]!r}; for {self.way} it has {', '.join(known)}")
        return replace(self, options=dict(options))


def ways_of(system: str) -> list[Way]:
    """What a system can do with files."""
    return ways_in(_pipeline_of(system))


def plan_job(
    way: Way,
    bundle: Path,
    options: Mapping[str, Any] | None = None,
    *,
    suffix: str | None = None,
    backend: str = "auto",
    precision: Precision | None = None,
    threads: int | None = 1,
) -> Job:
    """Check all that can be told without opening the networks. suffix: of the audio (or video) that is made; .wav by default.

    Raises BundleError, InputError, AudioError.
    """
    opened = Bundle.open(bundle)
    system, rate = opened.spec.system, opened.spec.sample_rate
    if way not in ways_of(system):
        raise InputError(f"{system} can't {way}; it can {', '.join(ways_of(system))}")
    if way == "encode" and suffix not in (None, ENCODED_SUFFIX):
        raise InputError(f"got the suffix {suffix} for encoded audio, expected {ENCODED_SUFFIX}, or none")
    chosen = suffix or (ENCODED_SUFFIX if way == "encode" else ".wav")
    if way != "encode" and not (way == "generate" and is_video_target(f"a{chosen}")):
        with TemporaryDirectory() as folder:
            AudioWriter.check_target(Path(folder, f"a{chosen}"), rate, _pipeline_of(system).row_channels)
    job = Job(way, Path(bundle).absolute(), system, opened.identity, chosen, {}, backend, precision, threads)
    return job.with_options(options or {})


def _pipeline_of(system: str) -> Any:
    return system_module(system, "pipeline").Pipeline
