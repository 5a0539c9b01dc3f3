"""From frames to what the language model attends to (SPEC section 5): every picture is encoded once, and black frames once per model.

The half without condition is made of black frames, all alike, and attention over copies of a key is attention over one: so it is what one
local and one global black frame give, 50 tokens, whatever the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.config import VISUAL_WIDTH
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pixels import Frames, black_pixels, pixel_values
from musicrt.runtime.session import Array

Float = NDArray[np.float32]
Keys = Mapping[str, Array]
"""Keys and values of every layer, by the names of the inputs of stage `lm`: [batch, heads, tokens, head width]. float32, or float16 where
the graphs are in half precision.
"""
_FRAMES = 8
"""Pictures that are encoded together: enough for two cores, and little memory."""


class Conditioner:
    """Runs the stages before the language model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._null: Keys | None = None

    def null_keys(self) -> Keys:
        """Keys and values of the half without condition, of one row and 50 tokens; computed at the first call. Raises BackendError."""
        if self._null is None:
            hidden = self.see(black_pixels())
            video_emb = self.fuse(self.encode("local", hidden), self.encode("global", hidden))
            self._null = rename(self.keys(video_emb))
        return self._null

    def keys(self, video_emb: Float) -> Keys:
        """Keys and values of a condition float32 [batch, tokens, d]. Raises BackendError."""
        return self._model.session("cross").run({"video_emb": np.ascontiguousarray(video_emb)})

    def see(self, pixels: Float) -> Float:
        """Pixel values [n, 3, 224, 224] -> what the image tower makes of them, float32 [n, 50, 768]. Raises BackendError."""
        return self._model.session("visual").run({"pixel_values": pixels})["hidden"]

    def encode(self, kind: str, hidden: Float) -> Float:
        """The same through the "local" or "global" transformer: float32 [n, 50, 768]. Raises BackendError."""
        return self._model.session(kind).run({"hidden": np.ascontiguousarray(hidden)})[f"{kind}_hidden"]

    def fuse(self, local: Float, all_around: Float) -> Float:
        """Encoded local [n, 50, 768] and global frames of one video -> its condition, float32 [1, 50 n, d]. Raises BackendError."""
        feeds = {"local_hidden": local.reshape(1, -1, VISUAL_WIDTH), "global_hidden": all_around.reshape(1, -1, VISUAL_WIDTH)}
        return self._model.session("fuse").run(feeds)["video_emb"]


class Scene:
    """The videos of one batch, looked at window by window. Keeps of their frames what later windows can still need."""

    def __init__(self, conditioner: Conditioner, clips: Sequence[Clip]) -> None:
        """Encodes the global frames. Raises VideoError, BackendError."""
        self._conditioner = conditioner
        self._clips = clips
        self._seen: dict[bytes, Float] = {}  # of global frames, by content: what the image tower gives
        self._local: dict[bytes, Float] = {}  # by content: encoded local frames
        self._names: list[dict[int, bytes]] = [{} for _ in clips]  # the contents of each clip's local frames
        self._global = [self._encode_global(clip.global_frames()) for clip in clips]

    def condition(self, local: range) -> Float:
        """The condition of a window on these local frames, float32 [batch, 50 n, d]; no later one may begin before it.

        Frames past the end are the last one again. Raises VideoError, BackendError.
        """
        rows = []
        for clip, names, all_around in zip(self._clips, self._names, self._global, strict=True):
            for number in [number for number in names if number < local.start]:
                del names[number]
            self._encode_local(clip, names, local)
            rows.append(self._conditioner.fuse(np.stack([self._local[names[number]] for number in local]), all_around))
        needed = {name for names in self._names for name in names.values()}
        self._local = {name: hidden for name, hidden in self._local.items() if name in needed}
        return np.concatenate(rows)

    def _encode_global(self, frames: Frames) -> Float:
        names = name_frames(frames)
        self._seen |= self._look(frames, names, known=self._seen)
        distinct = dict.fromkeys(names)
        parts = [self._conditioner.encode("global", np.stack([self._seen[name] for name in part])) for part in _cut(list(distinct))]
        encoded = dict(zip(distinct, np.concatenate(parts), strict=True))
        return np.stack([encoded[name] for name in names])

    def _encode_local(self, clip: Clip, names: dict[int, bytes], local: range) -> None:
        missing = [number for number in local if number not in names]
        if not missing:
            return
        frames = read_local(clip, missing[0], missing[-1] + 1)
        contents = name_frames(frames)
        names.update(zip(missing, contents, strict=True))
        seen = {**self._seen, **self._look(frames, contents, known={**self._seen, **self._local})}
        new = [name for name in dict.fromkeys(contents) if name not in self._local]
        for part in _cut(new):
            hidden = self._conditioner.encode("local", np.stack([seen[name] for name in part]))
            self._local |= zip(part, hidden, strict=True)

    def _look(self, frames: Frames, names: Sequence[bytes], known: Iterable[bytes]) -> dict[bytes, Float]:
        """What the image tower gives of those frames that are not known, each once."""
        found: dict[bytes, Float] = {}
        first = {name: number for number, name in reversed(list(enumerate(names))) if name not in known}
        for part in _cut(list(first)):
            pixels = pixel_values(frames[:, [first[name] for name in part]])
            found |= zip(part, self._conditioner.see(pixels), strict=True)
        return found


def name_frames(frames: Frames) -> list[bytes]:
    """A digest of the content of each of frames [3, n, H, W]."""
    return [blake2b(frames[:, number].tobytes(), digest_size=16).digest() for number in range(frames.shape[1])]


def read_local(clip: Clip, start: int, stop: int) -> Frames:
    """Local frames of a clip [3, stop - start, H, W], the last one again for those past its end. Raises VideoError."""
    end = clip.local_count
    frames = clip.local_frames(min(start, end - 1), min(stop, end))
    return np.pad(frames, ((0, 0), (0, stop - start - frames.shape[1]), (0, 0), (0, 0)), mode="edge")


def rename(keys: Keys) -> Keys:
    """The keys of one row under the names that stage `lm` has for those without condition."""
    return {name.replace("cross_", "null_"): values for name, values in keys.items()}


def _cut(names: list[bytes]) -> list[list[bytes]]:
    return [names[start : start + _FRAMES] for start in range(0, len(names), _FRAMES)]
