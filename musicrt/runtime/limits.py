"""How large what comes from elsewhere may be: files of users, and what a bundle says. All limits stand here, and only here.

They are far beyond what the systems are used for, and keep a small file from becoming hours of work or all of the memory. A service sets
narrower ones, and who has larger files wider ones, in the environment: MUSICRT_LIMITS="audio_seconds=600,video_pixels=5e8".
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Literal

from musicrt.runtime.errors import InputError, MusicRTError

VARIABLE = "MUSICRT_LIMITS"
"""The environment variable; it is read whenever a limit is needed."""

Limit = Literal[
    "audio_seconds",
    "audio_channels",
    "audio_values",
    "video_seconds",
    "video_frames",
    "video_pixels",
    "encoded_header_bytes",
    "encoded_values",
    "manifest_bytes",
    "graph_bytes",
    "upload_bytes",
]

DEFAULTS: Mapping[Limit, int] = {
    "audio_seconds": 24 * 3600,  # of an audio file, by its header and as it is decoded, and of what encoded audio stands for
    "audio_channels": 64,  # of an audio file
    "audio_values": 1 << 30,  # samples of all channels that are held at once, where a file is read as a whole; 4 GiB
    "video_seconds": 4 * 3600,  # of a video, whatever its container or its frames say
    "video_frames": 1 << 20,  # of a video
    "video_pixels": 1 << 26,  # of each frame; 8K has half as many
    "encoded_header_bytes": 1 << 20,  # of a file of encoded audio; ours have some hundred
    "encoded_values": 1 << 28,  # latents or codes of such a file; codes take 8 bytes each in memory and may be one bit in the file
    "manifest_bytes": 1 << 24,  # of a bundle; ours have some hundred thousand
    "graph_bytes": 1 << 26,  # of an ONNX graph, whose weights lie elsewhere
    "upload_bytes": 1 << 30,  # of a file that is dropped on the page
}


def limit_of(name: Limit) -> int:
    """A limit, as the environment or the default has it. Raises InputError for an environment that says nothing sensible."""
    return _read(os.environ.get(VARIABLE, "")).get(name, DEFAULTS[name])


def check_limit(name: Limit, size: float, what: str, kind: type[MusicRTError] = InputError) -> None:
    """Raises an error of that kind if `size` is above a limit, or no number. what: "song.flac lasts 90000 s", say."""
    limit = limit_of(name)
    if not size <= limit:
        raise kind(f"{what}, expected at most {limit}; if that is meant, set {VARIABLE}={name}={_raised(size)}")


def _raised(size: float) -> str:
    return str(math.ceil(size)) if math.isfinite(size) else "N"


@functools.lru_cache(maxsize=8)
def _read(text: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in DEFAULTS or not 1 <= number < math.inf:
            raise InputError(f"got {part!r} in {VARIABLE}, expected NAME=NUMBER of {', '.join(DEFAULTS)}, separated by commas")
        found[name] = int(number)
    return found
