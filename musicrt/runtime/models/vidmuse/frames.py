"""The frames of a video that VidMuse looks at (SPEC section 4), from a file, an array, or ready-made.

Of a file that is short (two minutes), all frames that are looked at are held in memory, 150 KB each, after a single decoding. A longer
one is decoded twice: once for its global frames, leaping from keyframe to keyframe, so that music can begin early; and once for
its local frames, as far as the music has come, of which only the latest are held.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from musicrt.runtime.errors import InputError, VideoError
from musicrt.runtime.models.vidmuse.pixels import Frames, resize
from musicrt.runtime.models.vidmuse.sampling import FRAME_RATE, Ids, global_ids, local_ids, pad_ids
from musicrt.runtime.video import Video

GLOBAL_FRAMES = 32
"""Frames of the whole video that the official demonstration takes; in training there were 64."""
_HELD = 240  # local frames
Picture = npt.NDArray[np.uint8]
"""[3, height, width]"""


class _Pictures(Protocol):
    """Gives the pictures of rising ids, one picture for each; those of local frames window by window."""

    def of_local(self, ids: Ids) -> dict[int, Picture]: ...
    def of_global(self, ids: Ids) -> dict[int, Picture]: ...
    def close(self) -> None: ...


class Clip:
    """What is looked at of a video: `local_count` frames at two a second, and `global_count` frames of the whole.

    `seconds`: how much music belongs to it, None where only frames are known. `global_ids` and `local_ids`: two frames with the same
    id are the same picture.
    """

    def __init__(self, name: str, seconds: int | None, local: Ids, globals_: Ids, pictures: _Pictures) -> None:
        """`name`: what messages call it. The class methods are for users."""
        self.name, self.seconds, self.global_ids = name, seconds, globals_
        self._local, self._pictures, self._start = local, pictures, 0

    @classmethod
    def open(
        cls, video: str | Path | Clip, *, seconds: int | None = None, global_frames: int = GLOBAL_FRAMES, antialias: bool = False
    ) -> Clip:
        """A video file; a clip is given back. `seconds`: the whole seconds of it, if not given.

        `antialias`: as resizing is with torchvision 0.17 or newer. Raises VideoError: unreadable, or shorter than a second; InputError.
        """
        if isinstance(video, Clip):
            return video
        _check_count("global_frames", global_frames)
        file = Video(video)
        if seconds is None:
            seconds = int(file.duration)
            if seconds < 1:
                raise VideoError(
                    f"{file.path} lasts {file.duration:.2f} s, expected at least 1 s (music is made for whole seconds); lengthen it"
                )
        _check_count("seconds", seconds)
        chosen, overall = _choose(file.frames, file.rate, seconds, global_frames)
        return cls(file.path.name, seconds, chosen, overall, _FilePictures(file, chosen, overall, antialias))

    @classmethod
    def from_frames(
        cls,
        frames: npt.NDArray[np.uint8],
        rate: float,
        *,
        seconds: int | None = None,
        global_frames: int = GLOBAL_FRAMES,
        antialias: bool = False,
    ) -> Clip:
        """All frames of a video, RGB uint8 [frames, height, width, 3] or [frames, 3, height, width], `rate` of them a second.

        `seconds`: the whole seconds that these are, if not given. Raises InputError: another shape or dtype, less than a second.
        """
        _check_count("global_frames", global_frames)
        pictures = _check_frames(frames)
        if not isinstance(rate, numbers.Real) or not 0 < rate < math.inf:
            raise InputError(f"rate: got {rate!r}, expected the frames a second of the video, such as 25 or 29.97")
        if seconds is None:
            seconds = int(len(pictures) / rate)
            if seconds < 1:
                raise InputError(
                    f"got {len(pictures)} frames at {rate:g} a second, expected at least one second of video; or give `seconds`"
                )
        _check_count("seconds", seconds)
        chosen, overall = _choose(len(pictures), float(rate), seconds, global_frames)
        return cls("the frames", seconds, chosen, overall, _ArrayPictures(lambda index: resize(pictures[index], antialias)))

    @classmethod
    def from_tensors(cls, local: npt.ArrayLike, globals_: npt.ArrayLike) -> Clip:
        """Frames as the official `generate` takes them, chosen already: [3, frames, height, width], both of one size.

        uint8, or whole numbers from 0 to 255 of another dtype. Raises InputError.
        """
        chosen, overall = _check_tensor("local frames", local), _check_tensor("global frames", globals_)
        if chosen.shape[2:] != overall.shape[2:]:
            raise InputError(
                f"got local frames {list(chosen.shape)} and global frames {list(overall.shape)}, expected one height and width"
            )
        known: dict[bytes, int] = {}  # by the hash of a picture, the first place where it comes
        pictures = [*chosen.transpose(1, 0, 2, 3), *overall.transpose(1, 0, 2, 3)]
        ids = np.array(
            [known.setdefault(hashlib.sha256(picture.tobytes()).digest(), index) for index, picture in enumerate(pictures)], np.int64
        )
        count = chosen.shape[1]
        return cls("the frames", None, ids[:count], ids[count:], _ArrayPictures(lambda index: pictures[index]))

    @property
    def local_count(self) -> int:
        """How many local frames there are, after padding."""
        return len(self._local)

    @property
    def global_count(self) -> int:
        """How many global frames there are."""
        return len(self.global_ids)

    def local_ids(self, start: int = 0, stop: int | None = None) -> Ids:
        """Ids of local frames start..stop: int64 [stop - start]."""
        return self._local[start:stop]

    def local_frames(self, start: int = 0, stop: int | None = None) -> Frames:
        """Local frames start..stop: uint8 [3, stop - start, height, width], 224 x 224 but for ready-made ones.

        `start` may not fall from call to call: what lies before it is forgotten. Raises InputError, VideoError.
        """
        if not self._start <= start < self.local_count:
            raise InputError(f"{self.name}: got local frame {start}, expected {self._start} to {self.local_count - 1}: windows go forwards")
        self._start = start
        return _stack(self._local[start:stop], self._pictures.of_local)

    def global_frames(self) -> Frames:
        """All global frames: uint8 [3, global_count, height, width]. Raises VideoError."""
        return _stack(self.global_ids, self._pictures.of_global)

    def close(self) -> None:
        """Close the file, if it is open between two windows, and forget the pictures; they can be read from the start again."""
        self._pictures.close()
        self._start = 0


class _ArrayPictures:
    """Pictures that are there already."""

    def __init__(self, get: Callable[[int], Picture]) -> None:
        self._get = get

    def of_local(self, ids: Ids) -> dict[int, Picture]:
        return {index: self._get(index) for index in ids.tolist()}

    def of_global(self, ids: Ids) -> dict[int, Picture]:
        return self.of_local(ids)

    def close(self) -> None:
        pass


class _FilePictures:
    """Pictures of a file. See the top of this module for what is held."""

    def __init__(self, video: Video, local: Ids, globals_: Ids, antialias: bool) -> None:
        self._video, self._antialias, self._local = video, antialias, np.unique(local)
        self._all = np.unique(np.concatenate([local, globals_])) if len(local) <= _HELD else None
        self._held: dict[int, Picture] = {}
        self._coming: Iterator[tuple[int, Picture]] | None = None

    def of_global(self, ids: Ids) -> dict[int, Picture]:
        return dict(self._read(ids)) if self._all is None else self._hold_all(self._all)

    def of_local(self, ids: Ids) -> dict[int, Picture]:
        if self._all is not None:
            return self._hold_all(self._all)
        self._held = {index: picture for index, picture in self._held.items() if index >= ids[0]}
        if self._coming is None:
            self._coming = self._read(self._local[np.searchsorted(self._local, ids[0]) :])
        while ids[-1] not in self._held:
            try:
                index, picture = next(self._coming)
            except VideoError:
                self.close()
                raise
            if index >= ids[0]:
                self._held[index] = picture
        return self._held

    def close(self) -> None:
        self._held, self._coming = {}, None

    def _hold_all(self, ids: Ids) -> dict[int, Picture]:
        self._held = self._held or dict(self._read(ids))
        return self._held

    def _read(self, ids: Ids) -> Iterator[tuple[int, Picture]]:
        distinct: Sequence[int] = np.unique(ids).tolist()
        return ((index, resize(picture, self._antialias)) for index, picture in zip(distinct, self._video.read(distinct), strict=True))


def _choose(frames: int, rate: float, seconds: int, global_frames: int) -> tuple[Ids, Ids]:
    chosen = pad_ids(local_ids(frames, rate, seconds), FRAME_RATE * seconds)
    return chosen, global_ids(frames, global_frames)


def _stack(ids: Ids, find: Callable[[Ids], dict[int, Picture]]) -> Frames:
    pictures = find(ids)
    return np.stack([pictures[index] for index in ids.tolist()], axis=1)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: got {value!r}, expected a whole number of at least 1")


def _check_frames(frames: Any) -> npt.NDArray[np.uint8]:
    """As [frames, 3, height, width]."""
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        what = f"dtype {frames.dtype}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise InputError(f"frames: got {what}, expected a numpy array of uint8, RGB from 0 to 255; convert it first")
    if frames.ndim == 4 and 3 in (frames.shape[1], frames.shape[3]) and frames.size:
        return frames if frames.shape[3] != 3 else frames.transpose(0, 3, 1, 2)
    raise InputError(f"frames: got shape {list(frames.shape)}, expected [frames, height, width, 3] or [frames, 3, height, width]")


def _check_tensor(name: str, tensor: Any) -> Frames:
    """As uint8."""
    array = np.asarray(tensor)
    if array.ndim != 4 or array.shape[0] != 3 or not array.size:
        raise InputError(f"{name}: got shape {list(array.shape)}, expected [3, frames, height, width] with at least one frame")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: got dtype {array.dtype}, expected uint8, RGB from 0 to 255; convert them first")
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.uint8)
    if not np.array_equal(whole, array):
        raise InputError(f"{name}: got values that are not whole numbers from 0 to 255; convert them to uint8 first")
    return whole
