"""The share of each saving: what is computed once, left out, batched or changed in place, with it and without it, on ONNX Runtime.

Each saving is undone on its own, on the graphs of the bundle where that is possible: keys and values of the condition computed by every
step, for both halves; as many tokens of black frames as of the condition; caches written anew by every step, as a concatenation does;
the halves of guidance one after the other, on a graph of one half. The calls of a comparison run in turn in one process. What the
condition takes is put together from single pictures, and how many there are, officially and here, is counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs import open_like_stage
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.rounds import time_in_turn
from benchmarks.vidmuse.contenders import OnBackend
from benchmarks.vidmuse.savings_tables import Sizes, render
from benchmarks.vidmuse.workload import GUIDANCE, Workload
from musicrt.runtime.backends.onnx_session import OnnxSession
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import run_isolated
from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME
from musicrt.runtime.models.vidmuse.frames import GLOBAL_FRAMES
from musicrt.runtime.models.vidmuse.pixels import pixel_values
from musicrt.runtime.models.vidmuse.spec import cache_names, cross_names, null_names
from musicrt.runtime.spec import updated_name

Arrays = dict[str, NDArray[Any]]
_GROUPS = ("steps", "passes", "condition")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("vidmuse.savings", "With and without each saving.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--local", type=int, default=60, help="local frames of the condition (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=750, help="in the caches (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=8, help="that are encoded together (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.1, help="seconds before each call (default: %(default)s)")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.local, options.columns, options.pictures)
    settings = {**sizes.to_json(), "guidance": GUIDANCE, "repeats": options.repeats, "rest": options.rest}
    content = describe_run("savings", options.bundle, settings, options.threads)
    asked = {"bundle": str(options.bundle), "checkpoint": str(options.checkpoint), "threads": options.threads}
    asked |= {"repeats": options.repeats, "rest": options.rest, "sizes": sizes.to_json()}
    times: dict[str, list[float]] = {}
    for group in _GROUPS:
        say(f"{group} …")
        times |= run_isolated(f"{_MODULE}:time_group", {**asked, "group": group})
    content |= {"times": times}
    write_results(options.out, content, render(times, sizes, build_work(str(options.bundle), sizes)))


def time_group(
    group: str, bundle: str, checkpoint: str, threads: int | None, repeats: int, rest: float, sizes: dict[str, Any]
) -> dict[str, list[float]]:
    """In a fresh process: seconds of each repeat of the calls of one of the groups."""
    size = Sizes(**sizes)
    contender, work = OnBackend(bundle, OnnxCpu.name, threads), build_work(bundle, size)
    with contender.codec, tempfile.TemporaryDirectory(prefix="musicrt-savings-") as folder:
        match group:
            case "steps":
                calls = step_calls(contender, work, size)
            case "passes":
                calls = pass_calls(contender, work, size, Path(checkpoint), Path(folder), threads)
            case _:
                calls = condition_calls(contender, work, size)
        return time_in_turn(calls, repeats, rest)


def build_work(bundle: str, size: Sizes) -> Workload:
    """A window of such sizes; its caches have room for one column more than they hold, so that all of them is looked at."""
    spec = Bundle.open(bundle).spec
    capacity = max(size.columns + 1, 16)
    return Workload.build(spec.config, TOKENS_PER_FRAME * size.local, capacity)


def step_calls(contender: OnBackend, work: Workload, size: Sizes) -> dict[str, Callable[[], object]]:
    """A step as it is, with long keys of black frames, and with caches that are written anew; and what makes keys and values."""
    session, conditioner = contender.codec.model.session("lm"), contender.codec.composer.conditioner
    feeds, both = contender.step_feeds(size.columns, work), np.concatenate([work.condition()] * 2)
    return {
        "step": session.bind(feeds, make_logits(work)),
        "step, black frames as long": session.bind(lengthen_null(feeds, work), make_logits(work)),
        "step, caches written anew": bind_elsewhere(session, feeds, make_logits(work), work),
        "keys and values, both halves": lambda: conditioner.keys(both),
        "keys and values, once": lambda: conditioner.keys(both[:1]),
    }


def make_logits(work: Workload, halves: int = 2) -> Arrays:
    """Where a step writes."""
    return {"logits": np.empty((halves, 1, work.config.codebooks, 1, work.config.card), np.float32)}


def lengthen_null(feeds: Mapping[str, NDArray[Any]], work: Workload) -> Arrays:
    """The same step with the keys and values of as many black frames as there are frames; with caches of its own."""
    tiled = {name: np.tile(feeds[name], (1, 1, work.tokens // TOKENS_PER_FRAME, 1)) for name in null_names(work.config.layers)}
    return {**feeds, **copy_caches(feeds, work), **tiled}


def copy_caches(feeds: Mapping[str, NDArray[Any]], work: Workload, rows: slice = slice(None)) -> Arrays:
    """The caches of some rows, in memory of their own."""
    return {name: feeds[name][rows].copy() for name in cache_names(work.config.layers)}


def bind_elsewhere(session: OnnxSession, feeds: Mapping[str, NDArray[Any]], results: Arrays, work: Workload) -> Callable[[], None]:
    """A step whose changed caches go into other memory than those that it is given."""
    opened = session.session
    binding, held = opened.io_binding(), {**feeds, **copy_caches(feeds, work)}
    changed = {updated_name(name): np.empty_like(feeds[name]) for name in cache_names(work.config.layers)}
    for name, array in held.items():
        binding.bind_cpu_input(name, array)
    for name, array in {**changed, **results}.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def call(_buffers: object = (held, changed, results)) -> None:  # which the binding does not keep
        opened.run_with_iobinding(binding)

    return call


def pass_calls(
    contender: OnBackend, work: Workload, size: Sizes, checkpoint: Path, folder: Path, threads: int | None
) -> dict[str, Callable[[], object]]:
    """A step for both halves at once, and for one after the other."""
    from benchmarks.vidmuse.passes import describe_pass, export_pass

    feeds = contender.step_feeds(size.columns, work)
    one = open_like_stage(describe_pass(work), export_pass(work, checkpoint, folder), threads)
    passes = [one.bind(half, make_logits(work, 1)) for half in split_halves(feeds, work)]

    def one_by_one() -> None:
        for run in passes:
            run()

    whole = contender.codec.model.session("lm").bind(feeds, make_logits(work))
    return {"step, next to that": whole, "step, one half after the other": one_by_one}


def split_halves(feeds: Mapping[str, NDArray[Any]], work: Workload) -> list[Arrays]:
    """What a pass is given with the condition, and without it."""
    shared = {name: feeds[name] for name in ("tokens", "length")}
    names, null = cross_names(work.config.layers), null_names(work.config.layers)
    keys = [{name: feeds[name] for name in names}, {name: feeds[other] for name, other in zip(names, null, strict=True)}]
    return [{**shared, **half, **copy_caches(feeds, work, slice(row, row + 1))} for row, half in enumerate(keys)]


def condition_calls(contender: OnBackend, work: Workload, size: Sizes) -> dict[str, Callable[[], object]]:
    """The stages before the language model, on some pictures, and on those of a window."""
    conditioner = contender.codec.composer.conditioner
    frames = work.frames(size.pictures, 0)
    hidden = conditioner.see(pixel_values(frames))
    local, whole = (np.concatenate([hidden] * -(-count // size.pictures))[:count] for count in (size.local, GLOBAL_FRAMES))
    return {
        "image tower": lambda: conditioner.see(pixel_values(frames)),
        "local transformer": lambda: conditioner.encode("local", hidden),
        "global transformer": lambda: conditioner.encode("global", hidden),
        "fusion": lambda: conditioner.fuse(local, whole),
    }


_MODULE = "benchmarks.vidmuse.savings"

if __name__ == "__main__":
    sys.exit(launch(main))
