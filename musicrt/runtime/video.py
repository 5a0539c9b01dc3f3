"""Reading the pictures of a video file, with PyAV (the extra `video`), in memory that does not grow with its length.

A frame's index is its place in the order of display. Frames are given as displayed: turned by what the file says of its rotation
(multiples of 90 degrees, without mirroring, as decord does), their colours converted by the matrix and range that the file names.
"""

from __future__ import annotations

import contextlib
import logging
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musicrt.runtime.errors import VideoError
from musicrt.runtime.limits import check_limit, limit_of
from musicrt.runtime.video_decoder import Decoder, Index, Picture, as_video_error, import_av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_LOG = logging.getLogger("musicrt")
_FORMATS = "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg,gif,mxf,ivf,nut,dv,yuv4mpegpipe,h264,hevc,m4v,mpegvideo,obu,mp3,wav,flac,aac"
"""FFmpeg's names of containers that hold all that they show; playlists and the like make it open what they name, here or elsewhere."""
_MISSING = 0.1  # seconds, or 1 %: what may be missing of the promised length

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "flv", "ogv", "3gp", "gif", "mxf")
)
"""What video files are called, in lower case; those of other names are read too, if they hold a video."""


class Video:
    """A video file, looked through once from beginning to end, but not decoded; it is not held open.

    `duration` in seconds: what the container says, else the stream, else the frames. `rate`: its average frames a second;
    `frames`: how many are displayed; `length`: of the pictures, in seconds; `start`: when the first is displayed, in the unit of the
    stream, None where the file does not tell; `comment`: that of the file, empty where it has none. Of several streams it is the one that
    a player would choose. Attached pictures, such as the cover of a song, are no video.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises VideoError: not there, no video, without frames, damaged, or shorter than it says."""
        self.path = Path(path)
        with self.open() as (container, stream), as_video_error(self.path):
            self._index = self._look_through(container, stream)
            self.start, self.comment = self._index.start, container.metadata.get("comment") or container.metadata.get("COMMENT", "")
            self.frames = self._index.frames
            rate = float(stream.average_rate or 0)
            seconds = _seconds(stream.duration, stream.time_base) or (self.frames / rate if rate else 0.0)
            self.duration = container.duration / 1e6 if container.duration else seconds
            self.length = _seconds(self._index.span, stream.time_base) or self.duration
        self.rate = rate or (self.frames / self.duration if self.duration else 0.0)
        if not (self.rate > 0 and self.duration > 0):
            raise VideoError(f"can't read {self.path}: it tells neither duration nor frame rate; convert it to .mp4 first")
        seconds = max(self.duration, self.length)
        check_limit("video_seconds", seconds, f"{self.path} says that it lasts {seconds:.0f} s", VideoError)

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """The frames of rising indices (one may come again), decoding once from front to back: uint8 [3, height, width].

        In place of a frame that can't be decoded comes the next that can, or the last one. Raises VideoError where that is more
        than a second away, and for indices that are not there.
        """
        wanted = [int(index) for index in indices]
        if wanted != sorted(wanted) or (wanted and not 0 <= wanted[0] <= wanted[-1] < self.frames):
            raise VideoError(f"{self.path}: got frames {wanted[:3]}…, expected rising numbers from 0 to {self.frames - 1}")
        return self._read(wanted)

    def _read(self, wanted: list[int]) -> Iterator[Picture]:
        if not wanted:
            return
        with contextlib.closing(Decoder(self.path, self.open, self._index)) as decoder:
            found, substituted = decoder.advance(wanted[0]), 0
            picture = decoder.picture()
            for index in wanted:
                if found < index and (following := decoder.advance(index)) != found:
                    found, picture = following, decoder.picture()
                if abs(found - index) > max(self.rate, 1):
                    raise VideoError(f"{self.path}: frame {index} of {self.frames} and those around can't be decoded; get an intact copy")
                substituted += found != index
                yield picture
        if substituted:
            fields = {"event": "frames_replaced", "file": self.path.name, "frames": substituted}
            _LOG.warning("%s: %d frames can't be decoded; their neighbours took their place", self.path.name, substituted, extra=fields)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file for as long as the `with` block lasts. Raises VideoError."""
        av = import_av()
        if not self.path.is_file():
            raise VideoError(f"can't read {self.path}: {'not a file' if self.path.exists() else 'no such file'}; expected a video")
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": str(limit_of("video_pixels"))}
        with as_video_error(self.path):
            container = av.open(f"file:{self.path}", "r", metadata_errors="replace", options=options)  # a name with a colon is no address
        with container:
            stream = self._choose(container)
            self._check_pixels(stream)
            # The options of opening hold while FFmpeg finds out what the file is; these hold for a size that changes later on.
            stream.codec_context.options = {"max_pixels": options["max_pixels"]}
            stream.thread_type = "AUTO"
            yield container, stream

    def _choose(self, container: InputContainer) -> VideoStream:
        """The stream that a player would show. Raises VideoError."""
        from av.stream import Disposition

        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            kinds = sorted({"cover art" if one.type == "video" else one.type for one in container.streams})
            raise VideoError(f"can't read {self.path}: it holds {' and '.join(kinds) or 'nothing'}, expected a video")
        best = container.streams.best("video")
        stream = next((one for one in streams if best is not None and one.index == best.index), streams[0])
        if stream.codec_context is None:
            raise VideoError(f"can't read {self.path}: the codec of its video is unknown here; convert it to .mp4 with H.264 first")
        return stream

    def _check_pixels(self, stream: VideoStream) -> None:
        width, height = stream.codec_context.width, stream.codec_context.height
        check_limit("video_pixels", width * height, f"{self.path} has frames of {width} x {height} pixels", VideoError)

    def _look_through(self, container: InputContainer, stream: VideoStream) -> Index:
        """Counts the packets of frames that are displayed, and notes their times. Raises VideoError."""
        times, keys, known, packets, end = array("q"), array("q"), True, 0, 0
        for packet in container.demux(stream):
            if not packet.size:  # the mark at the end
                continue
            packets += 1
            if packet.is_discard:
                continue
            known &= packet.pts is not None
            time = packet.pts or 0
            times.append(time)
            check_limit("video_frames", len(times), f"{self.path} has {len(times)} frames or more", VideoError)
            if packet.is_keyframe:
                keys.append(time)
            end = max(end, time + (packet.duration or 0))
        if not times:
            raise VideoError(f"can't read {self.path}: its video has no frames; expected at least one second of video")
        self._check_end(stream, packets, end - min(times) if known else 0)
        if not known:
            return Index(len(times))
        return Index.of(np.array(times, np.int64), np.array(keys, np.int64), end)

    def _check_end(self, stream: VideoStream, packets: int, span: int) -> None:
        """Raises VideoError where much is missing of what the file's head promises."""
        rate = float(stream.average_rate or 0)
        counted = stream.frames > 0 and rate > 0
        promised = stream.frames / rate if counted else _clock(stream.metadata.get("DURATION", ""))
        got = max(_seconds(span, stream.time_base), packets / rate if counted else 0.0)
        if promised - got > max(_MISSING, 0.01 * promised):
            raise VideoError(f"can't read {self.path}: it ends after {got:.2f} of {promised:.2f} s; get the whole file")


def _seconds(count: int | None, unit: Any) -> float:
    return float(count * unit) if count and unit else 0.0


def _clock(text: str) -> float:
    """Seconds of "00:01:02.5"; 0 of anything else."""
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:
        return 0.0
    value = 3600 * hours + 60 * minutes + seconds
    return value if math.isfinite(value) else 0.0
