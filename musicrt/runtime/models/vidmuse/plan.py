"""What is to be done, made of videos and options before any work, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import check_batch
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.diffusion import OnStep
from musicrt.runtime.models.vidmuse.chunks import Chunk, check_duration, check_stride, count_columns, plan_chunks, plan_window
from musicrt.runtime.models.vidmuse.codec import AudioCodec
from musicrt.runtime.models.vidmuse.config import VIDEO_RATE, Config
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.noise import Numbers, choose_numbers
from musicrt.runtime.models.vidmuse.options import GenerateOptions, Prompt, Settings, Video, check_settings, open_clip
from musicrt.runtime.models.vidmuse.spec import BATCH
from musicrt.runtime.noise import choose_seed
from musicrt.runtime.progress import Tally, ignore_progress
from musicrt.runtime.source import open_source
from musicrt.runtime.spec import ModelSpec


@dataclass(frozen=True)
class Task:
    """The music of one video: its windows, and the given beginning int64 [1, codebooks, P]."""

    clip: Clip
    chunks: tuple[Chunk, ...]
    prompt: Tokens

    @property
    def timesteps(self) -> int:
        """Of the music, its beginning included."""
        return self.chunks[-1].offset + self.chunks[-1].timesteps


@dataclass(frozen=True)
class Plan:
    """The tasks of a call, and the numbers of those that run together, with what each such group draws."""

    tasks: Sequence[Task]
    groups: Sequence[Sequence[int]]
    numbers: Sequence[Numbers]
    settings: Settings
    on_step: OnStep


def make_plan(
    config: Config,
    spec: ModelSpec,
    videos: Sequence[Video],
    size: int,
    prompts: Callable[[int], list[Tokens]],
    options: GenerateOptions,
    timesteps: int | None = None,
) -> Plan:
    """Plan the music of some videos, `size` at most at a time. `prompts` gives the beginnings of so many.

    timesteps: instead of windows by the duration, a single one that sees all local frames. Raises VideoError, AudioError, InputError.
    """
    if isinstance(videos, str | Path) or not isinstance(videos, Sequence) or not videos:
        raise InputError(f"got {videos!r}, expected a list of at least one video")
    most = check_batch(size, BATCH.maximum)
    settings = check_settings(config, spec, options)
    stride = check_stride(spec.given("extend_stride", options.get("extend_stride")))
    duration = None if options.get("duration") is None else check_duration(options["duration"])
    frames = spec.given("global_frames", options.get("global_frames"))
    seed, noise = options.get("seed"), options.get("noise")
    fresh = choose_seed(seed) if noise is None else seed  # one for all groups
    clips = [open_clip(video, duration, frames, options.get("antialias", False)) for video in videos]
    begun = zip(clips, prompts(len(clips)), strict=True)
    if timesteps is None:
        tasks = [plan_task(clip, duration, stride, prompt) for clip, prompt in begun]
    else:
        tasks = [Task(clip, (plan_window(timesteps, clip.local_count, prompt.shape[2]),), prompt) for clip, prompt in begun]
    groups = group_tasks(tasks, most)
    if noise is not None and len(groups) > 1:
        raise InputError(f"got noise for {len(videos)} videos that do not run together; pass one video at a time, or a seed")
    pattern = DelayPattern(config.delays, config.special)
    counts = [count_columns(pattern, tasks[group[0]].chunks) for group in groups]
    numbers = [choose_numbers(fresh, noise, count, len(group), config.codebooks) for count, group in zip(counts, groups, strict=True)]
    tally = Tally(sum(counts), options.get("on_progress", ignore_progress))
    return Plan(tasks, groups, numbers, settings, tally.add)


def plan_task(clip: Clip, duration: float | None, stride: float, prompt: Tokens) -> Task:
    """The windows of a video's music, by default of as many whole seconds as it lasts, as officially.

    The video may be shorter than the music; then its last frame stays. Raises InputError.
    """
    if duration is None:
        if clip.seconds is None:
            raise InputError(f"{clip.name}: nothing says how long the music is to be; pass duration, in seconds")
        duration = float(clip.seconds)
    frames = clip.local_count if clip.seconds is None else max(int(VIDEO_RATE * duration), 1)
    return Task(clip, tuple(plan_chunks(duration, stride, frames, prompt.shape[2])), prompt)


def group_tasks(tasks: Sequence[Task], size: int) -> list[list[int]]:
    """The tasks that run together, `size` at most: those with the same windows; by their numbers, the first of each group in order."""
    groups: dict[tuple[Chunk, ...], list[list[int]]] = {}
    ordered: list[list[int]] = []
    for number, task in enumerate(tasks):
        same = groups.setdefault(task.chunks, [])
        if not same or len(same[-1]) == size:
            same.append([])
            ordered.append(same[-1])
        same[-1].append(number)
    return ordered


def read_prompts(codec: AudioCodec, prompt: Prompt | None, videos: int) -> list[Tokens]:
    """The given beginning of the music of each video, int64 [1, codebooks, P]; without one P is 0. Raises AudioError, InputError."""
    if prompt is None:
        return [codec.no_codes()] * videos
    if (given := _as_codes(prompt)) is not None:
        if given.shape[-2:] == codec.no_codes().shape[1:]:
            return [codec.no_codes()] * videos
        codes = codec.check(given)
        if len(codes) not in (1, videos):
            raise InputError(f"got a prompt of {len(codes)} rows of codes for {videos} videos, expected one, or one for each")
        return list(np.split(codes, len(codes))) * (videos // len(codes))
    return [codec.encode(codec.read(open_source(prompt, codec.sample_rate, kernel="julius")))] * videos


def _as_codes(prompt: Prompt) -> NDArray[Any] | None:
    """Whole numbers, perhaps from a list; None for anything else, which is audio or nothing."""
    if isinstance(prompt, str | Path):
        return None
    try:
        array = np.asarray(prompt)
    except ValueError:  # lists of several lengths
        return None
    return array if array.dtype.kind in "iu" else None
