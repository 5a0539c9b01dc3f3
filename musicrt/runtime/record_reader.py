"""Files of any kind: what they are, and the record of what they were made with."""

from __future__ import annotations

from pathlib import Path

from musicrt.runtime.audio import AudioInfo, probe_audio
from musicrt.runtime.audio_writer import SUFFIXES
from musicrt.runtime.encoded import Encoded, load_encoded
from musicrt.runtime.record import Record, find_record
from musicrt.runtime.video import VIDEO_SUFFIXES, Video

Made = AudioInfo | Video | Encoded
"""What a file may be."""


def open_made(path: str | Path) -> Made:
    """An audio file or a video, by its suffix, or else encoded audio. Raises AudioError, VideoError, EncodedError for what is none."""
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return probe_audio(path)
    return Video(path) if suffix in VIDEO_SUFFIXES else load_encoded(path)


def record_of(made: Made) -> Record | None:
    """What it was made with, None where it does not say. Raises InputError for a damaged record."""
    return made.record if isinstance(made, Encoded) else find_record(made.comment)


def read_record(path: str | Path) -> Record | None:
    """What a file was made with: an audio file or a video, by its suffix, or else encoded audio. None where it does not say.

    Raises AudioError, VideoError, EncodedError for what is none, InputError for a damaged record.
    """
    return record_of(open_made(path))
