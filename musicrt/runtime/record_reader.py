"""Finding the record in a file, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from musicrt.runtime.audio import read_comment
from musicrt.runtime.audio_writer import SUFFIXES
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.record import Record, find_record
from musicrt.runtime.video import VIDEO_SUFFIXES, Video


def read_record(path: str | Path) -> Record | None:
    """What a file was made with: an audio file or a video, by its suffix, or else encoded audio. None where it does not say.

    Raises AudioError, VideoError, EncodedError for what is none, InputError for a damaged record.
    """
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return find_record(read_comment(path))
    if suffix in VIDEO_SUFFIXES:
        return find_record(Video(path).comment)
    return load_encoded(path).record
