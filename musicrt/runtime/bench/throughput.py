"""Seconds of audio in a second: signals of one call, and threads that call, in a fresh process."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from musicrt.runtime.bench.calls import DECODED, ENCODED, decoding_options
from musicrt.runtime.bench.contenders import Contender
from musicrt.runtime.measure import measure, synthesise_music
from musicrt.runtime.pipeline import options_of

Call = Callable[[], object]


@dataclass(frozen=True)
class Load:
    """How long so many signals of a call took, or threads that call at once (`by`: "batch" or "concurrency").

    audio_seconds: of all signals, or of one call of every thread. times: seconds of each call; of threads a single value: what one call of
    each took on average.
    """

    part: str
    by: str
    count: int
    audio_seconds: float
    times: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """Seconds of audio in a second, at the median."""
        return self.audio_seconds / float(np.median(self.times))

    def to_json(self) -> dict[str, Any]:
        """Raw values, and the throughput."""
        return {**asdict(self), "throughput": self.throughput}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(values["part"], values["by"], values["count"], values["audio_seconds"], tuple(values["times"]))


def time_loads(
    bundle: str,
    contender: Mapping[str, Any],
    folder: str,
    by: str,
    parts: Sequence[str],
    counts: Sequence[int],
    repeats: int,
    seconds: float,
    steps: int | None,
    threads: int | None,
) -> dict[str, Any]:
    """In a fresh process, by "batch": calls with so many signals each, nothing of a part for which the system has no such call; by
    "concurrency": so many threads that call one pipeline at once, each again as soon as it has its result.
    """
    loads = []
    with Contender(**contender).open(bundle, threads) as codec:
        for part in parts:
            length, single = _length(codec, part, folder, seconds), _single(codec, part, folder, seconds, steps)
            if by == "concurrency":
                single()
            for count in counts:
                if by == "concurrency":
                    times = call_at_once([single] * count, repeats)
                elif call := _batched(codec, part, count, folder, seconds, steps):
                    times = measure(call, 1, repeats)
                else:
                    continue
                loads.append(Load(part, by, count, count * length, times).to_json())
    return {"loads": loads}


def call_at_once(calls: Sequence[Call], repeats: int) -> tuple[float, ...]:
    """Each call `repeats` times on a thread of its own: the time that all took together, shared out evenly. Raises what a call raises."""

    def work(call: Call) -> None:
        for _ in range(repeats):
            call()

    with ThreadPoolExecutor(len(calls)) as pool:
        begun = time.perf_counter()
        for done in [pool.submit(work, call) for call in calls]:
            done.result()
        return ((time.perf_counter() - begun) / repeats,)


def _length(codec: Any, part: str, folder: str, seconds: float) -> float:
    """Seconds of one signal's audio: what is decoded is as long as the codes, or the latents."""
    return seconds if part == "encode" else np.load(Path(folder) / DECODED, mmap_mode="r", allow_pickle=False).shape[-1] / codec.sample_rate


def _single(codec: Any, part: str, folder: str, seconds: float, steps: int | None) -> Call:
    if part == "encode":
        audio = synthesise_music(seconds, codec.sample_rate)
        return lambda: codec.encode(audio)
    values, options = np.load(Path(folder) / ENCODED, allow_pickle=False), decoding_options(codec, steps)
    return lambda: codec.decode(values, **options)


def _batched(codec: Any, part: str, count: int, folder: str, seconds: float, steps: int | None) -> Call | None:
    """One call for `count` signals, which run together; None where the system has none."""
    call = getattr(codec, f"{part}_batch", None)
    if part == "encode":
        signals, options = [synthesise_music(seconds, codec.sample_rate)] * count, {}
    else:
        signals, options = [np.load(Path(folder) / ENCODED, allow_pickle=False)] * count, decoding_options(codec, steps)
    if call is None:  # some decode takes rows
        return (lambda: codec.decode(np.concatenate(signals), **options)) if part == "decode" else None
    whole = codec.encode_source if part == "encode" else codec.decode_stream
    if "max_batch_size" in (*inspect.signature(call).parameters, *options_of(whole)):
        options["max_batch_size"] = count
    return lambda: call(signals, **options)
