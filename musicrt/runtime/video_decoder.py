"""Decoding a video stream forwards, frame by frame, with leaps to keyframes where these are exact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LEAP = 64  # frames: for fewer, decoding on is as fast as looking for a keyframe
_FAILURES = 100  # packets in a row that may fail to decode

Picture = NDArray[np.uint8]
"""RGB [3, height, width]"""
Opening = Callable[[], contextlib.AbstractContextManager[tuple["InputContainer", "VideoStream"]]]


@dataclass(frozen=True)
class Index:
    """What the packets of a stream say; times are in the unit of the stream.

    `start`, `span`: when the first frame is displayed, and how long all are; None and 0 where times are missing. `times` [frames]: of
    every frame in the order of display, where each has its own. `keys`: the indices of keyframes, rising; empty without times.
    """

    frames: int
    start: int | None = None
    span: int = 0
    times: NDArray[np.int64] | None = None
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, times: NDArray[np.int64], keys: NDArray[np.int64], end: int) -> Index:
        """From the times of all frames and of keyframes, in any order, and when the last one ends."""
        order = np.sort(times)
        start = int(order[0])
        if (np.diff(order) == 0).any():
            return cls(len(times), start, end - start)
        return cls(len(times), start, end - start, order, np.unique(np.searchsorted(order, keys)))


class Decoder:
    """Goes through a video once; `close` it.

    A leap to a keyframe is exact where every frame has a time of its own and the first frame that comes out is not behind the
    keyframe; where it is behind (there was no whole picture at that place), all is decoded from the beginning and without leaps.
    """

    def __init__(self, path: Path, opening: Opening, index: Index) -> None:
        """Raises VideoError."""
        self._path, self._opening, self._index, self._leaps = path, opening, index, True
        self._convert = _Converter()
        self._begin()

    def _begin(self) -> None:
        self._stack = contextlib.ExitStack()
        self._container, self._stream = self._stack.enter_context(self._opening())
        self._frames = self._decode()
        self._last: tuple[int, VideoFrame] | None = None

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def advance(self, index: int) -> int:
        """Go to the first frame from `index` on, or to the last one there is; gives its own index. Raises VideoError."""
        key = self._key_before(index)
        if key is not None and not self._leap(key):
            self._leaps = False
            self.close()
            self._begin()
        while self._last is None or self._last[0] < index:
            following = self._next()
            if following is None:
                break
            self._last = following
        if self._last is None:
            raise VideoError(f"can't read {self._path}: none of its frames can be decoded; get an intact copy")
        return self._last[0]

    def picture(self) -> Picture:
        """The frame gone to. Raises VideoError."""
        if self._last is None:
            raise VideoError(f"{self._path}: no frame was gone to; call advance first")
        with as_video_error(self._path):
            return self._convert(self._last[1])

    def _key_before(self, index: int) -> int | None:
        """A keyframe that is worth a leap."""
        keys = self._index.keys[: np.searchsorted(self._index.keys, index, side="right")]
        here = self._last[0] if self._last else 0
        return int(keys[-1]) if self._leaps and len(keys) and keys[-1] > here + _LEAP else None

    def _leap(self, key: int) -> bool:
        """Go on at a keyframe; False if that did not lead to where all frames from it on are whole."""
        if self._index.times is None:
            return False
        try:
            self._container.seek(int(self._index.times[key]), stream=self._stream)
        except OSError:  # what PyAV raises where the file can't be sought in
            return False
        self._frames, self._last = self._decode(), None
        self._last = self._next()
        return self._last is not None and self._last[0] <= key

    def _next(self) -> tuple[int, VideoFrame] | None:
        with as_video_error(self._path):
            frame = next(self._frames, None)
        if frame is None:
            return None
        if self._index.times is None or frame.pts is None:
            return (self._last[0] + 1 if self._last else 0), frame
        return int(np.searchsorted(self._index.times, frame.pts)), frame

    def _decode(self) -> Iterator[VideoFrame]:
        failures = 0
        invalid = import_av().error.InvalidDataError
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
                failures = 0
            except invalid:
                failures += 1
                if failures > _FAILURES:
                    raise


class _Converter:
    """Makes RGB of frames, as they are displayed."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Picture:
        rgb: Any = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns, rest = divmod(frame.rotation, 90)  # counterclockwise
        return np.ascontiguousarray(np.rot90(rgb, 0 if rest else turns).transpose(2, 0, 1))


def import_av() -> Any:
    """PyAV. Raises VideoError where it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise VideoError("videos need PyAV, which is not installed; pip install 'musicrt[video]'") from error
    return av


_REASONS = {"InvalidDataError": "no video, or not a whole one", "ArgumentError": "no kind of video that is read here, or too large"}


@contextlib.contextmanager
def as_video_error(path: Path) -> Iterator[None]:
    """Make a VideoError of what FFmpeg raises."""
    kinds = import_av().error
    try:
        yield
    except kinds.FFmpegError as error:
        reason = _REASONS.get(type(error).__name__) or error.strerror
        raise VideoError(f"can't read {path}: {reason}; expected an intact .mp4, .mov, .mkv or such") from error
