"""What the savings suite found, put together for a window of 30 s; and pictures of videos, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.vidmuse.workload import Workload
from musicrt.runtime.measure import markdown_table
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE
from musicrt.runtime.models.vidmuse.chunks import STRIDE, plan_chunks
from musicrt.runtime.models.vidmuse.config import VIDEO_RATE, WINDOW_SECONDS
from musicrt.runtime.models.vidmuse.frames import GLOBAL_FRAMES
from musicrt.runtime.models.vidmuse.sampling import global_ids, local_ids, pad_ids

Times = Mapping[str, Sequence[float]]
"""Seconds of each repeat, by what ran."""
ONE_KEYS = "keys and values of the condition once per window"
SHORT_NULL = "keys of one black frame instead of as many as there are frames"
IN_PLACE = "caches changed in place"
ONE_BATCH = "halves of guidance as one batch (officially, too)"
NO_NULL = "no condition of black frames"
DISTINCT = "each picture once"
VIDEOS: tuple[tuple[str, int, float, int], ...] = (
    ("30 s, 25 frames/s", 750, 25.0, 30),
    ("30 s, 24 frames/s", 720, 24.0, 30),
    ("30 pictures, one a second", 30, 1.0, 30),
    ("5 minutes, 25 frames/s", 7500, 25.0, 300),
)
"""Name, frames, frames a second, seconds. The first one is what the window is put together for."""


@dataclass(frozen=True)
class Sizes:
    """What was measured: local frames of the condition, columns in the caches, pictures together."""

    local: int
    columns: int
    pictures: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pictures:
    """How many run through the image tower, the local and the global transformer. Officially as many black ones besides."""

    tower: int
    local: int
    whole: int

    def seconds(self, times: Times, together: int) -> float:
        """What they take, by pictures that were measured together."""
        names = ("image tower", "local transformer", "global transformer")
        counts = (self.tower, self.local, self.whole)
        return sum(count * _median(times, name) / together for name, count in zip(names, counts, strict=True))


def count_pictures(frames: int, rate: float, seconds: int) -> tuple[Pictures, Pictures]:
    """Pictures of a video in all its windows: officially, and those that differ."""
    local, whole = pad_ids(local_ids(frames, rate, seconds), VIDEO_RATE * seconds), global_ids(frames, GLOBAL_FRAMES)
    windows = [local[chunk.local.start : chunk.local.stop] for chunk in plan_chunks(float(seconds), STRIDE, len(local))]
    looks = sum(len(window) for window in windows)
    official = Pictures(looks + len(windows) * len(whole), looks, len(windows) * len(whole))
    locals_, wholes = set(np.concatenate(windows).tolist()), set(whole.tolist())
    return official, Pictures(len(locals_ | wholes), len(locals_), len(wholes))


def save_window(times: Times, sizes: Sizes, work: Workload, video: tuple[str, int, float, int]) -> tuple[float, dict[str, float]]:
    """Seconds of a window with all savings, from frames to codes, and what each of them takes off."""
    official, ours = count_pictures(*video[1:])
    steps = work.pattern.columns(int(WINDOW_SECONDS * FRAME_RATE)) - 1
    step, keys, fusion = _median(times, "step"), _median(times, "keys and values, once"), _median(times, "fusion")
    now = ours.seconds(times, sizes.pictures) + fusion + keys + steps * step
    saved = {
        ONE_KEYS: steps * _median(times, "keys and values, both halves") - keys,
        SHORT_NULL: steps * (_median(times, "step, black frames as long") - step),
        IN_PLACE: steps * (_median(times, "step, caches written anew") - step),
        ONE_BATCH: steps * (_median(times, "step, one half after the other") - _median(times, "step, next to that")),
        NO_NULL: official.seconds(times, sizes.pictures) + fusion,
        DISTINCT: official.seconds(times, sizes.pictures) - ours.seconds(times, sizes.pictures),
    }
    return now, saved


def render(times: Times, sizes: Sizes, work: Workload) -> str:
    """The tables of the suite."""
    now, saved = save_window(times, sizes, work, VIDEOS[0])
    before = now + sum(saved.values())
    rows = [*saved.items(), ("all of them", before - now)]
    body = [[name, f"{seconds:.2f}", f"{seconds / before:.2%}", f"{1 + seconds / now:.2f}"] for name, seconds in rows]
    how = (
        f"Frames to codes, without the codec. Steps were measured behind {sizes.columns} columns, with {work.tokens} tokens of condition, "
        f"pictures by {sizes.pictures}. Keys and values without their saving are those of both halves, with as many tokens of black frames "
        "as of the condition; that attention then goes over the latter is counted apart."
    )
    ran = [[name, f"{_median(times, name) * 1e3:.2f}", f"{min(values) * 1e3:.2f}"] for name, values in times.items()]
    counted = ("video", "image tower", "local", "global", "here", "local", "global", "saved s")
    return "\n\n".join(
        [
            f"## A window, {VIDEOS[0][0]}: {before:.0f} s without, {now:.1f} s with the savings",
            markdown_table(("saving", "s", "share", "times as long without it alone"), body),
            how,
            "## Pictures that are encoded, officially (black ones not counted) and here",
            markdown_table(counted, [_count_row(video, times, sizes) for video in VIDEOS]),
            "## What ran",
            markdown_table(("call", "median ms", "best"), ran),
        ]
    )


def _count_row(video: tuple[str, int, float, int], times: Times, sizes: Sizes) -> list[str]:
    both = count_pictures(*video[1:])
    official, ours = (one.seconds(times, sizes.pictures) for one in both)
    counts = [str(count) for one in both for count in (one.tower, one.local, one.whole)]
    return [video[0], *counts, f"{official - ours:.2f}"]


def _median(times: Times, name: str) -> float:
    return float(np.median(times[name]))
