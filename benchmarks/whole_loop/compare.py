"""Does a sampler as one ONNX graph win over the loop on the host?

The whole graph is a `Loop` around the network of the bundle with the arithmetic of the sampler, step tables as constants and noise as an
input. Its weights are declared either in the main graph, where the body sees them, or in the body itself; both refer to the bundle's file.
All ways get the same arrays and run in turn in one process, another one first in each round. Beside the time of each run stands what it
took of the processors: with one thread that is the same without the waiting where other work shares them. Peaks are those of processes
that have run nothing but one way, twice: with the weights that it maps or copies, the inputs, and ONNX Runtime, but not what prepared the
inputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.rounds import time_in_turn
from benchmarks.whole_loop import language, signals
from benchmarks.whole_loop.problems import Arrays, Run, Size
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, markdown_table, peak_memory_mb, run_isolated, since_start
from musicrt.runtime.model import Model, load
from musicrt.runtime.precision import ORT
from musicrt.runtime.verify import relative_error

HOST = "host loop"
PROBLEMS = {**signals.PROBLEMS, **language.PROBLEMS}
OUTSIDE, INSIDE = "whole graph, weights outside the body", "whole graph, weights in the body"
WAYS = (HOST, OUTSIDE, INSIDE)
_STEPS = {"music2latent": 4, "semanticodec": 50, "mucodec": 20, "vidmuse": 1 << 14}


@dataclass(frozen=True)
class Found:
    """What was measured of one way. processor: seconds of all threads together in each run."""

    measurement: Measurement
    processor: tuple[float, ...]
    steps: int

    def to_json(self) -> dict[str, Any]:
        return {**self.measurement.to_json(), "processor": list(self.processor), "steps": self.steps}


Results = Mapping[str, Mapping[str, Found]]
"""By case, then by way."""


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("whole_loop.compare", "The loop on the host against a whole sampler as one ONNX graph.")
    parser.add_argument("--seconds", type=float, default=1.5, help="of audio; SemantiCodec has whole windows (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", help="evaluations of the network; default: the official ones, all columns, or 4")
    parser.add_argument("--choices", nargs="+", default=["greedy"], help="of tokens: greedy, or numbers for top_k (default: %(default)s)")
    parser.add_argument("--guidance", type=float, help="default: the system's")
    parser.add_argument("--frames", type=int, default=1, help="of the video that VidMuse sees, 50 tokens each (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each way in all (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes that share them (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.2, help="seconds before each run (default: %(default)s)")
    options = parser.parse_args(arguments)
    spec = Bundle.open(options.bundle).spec
    guidance = float(spec.defaults.get("guidance", 1.0) if options.guidance is None else options.guidance)
    cases = list_cases(spec.system, options, guidance)
    settings = {name: getattr(options, name) for name in ("seconds", "repeats", "rounds", "rest")}
    if spec.system == "vidmuse":
        settings |= {"frames": options.frames}
    content = describe_run("whole loop", options.bundle, {**settings, "guidance": guidance}, options.threads)
    rounds = split_repeats(options.repeats, options.rounds)
    results = {name: run_case(name, size, options, rounds) for name, size in cases.items()}
    content |= {"cases": {name: asdict(size) for name, size in cases.items()}}
    content |= {"measurements": {name: {way: m.to_json() for way, m in found.items()} for name, found in results.items()}}
    write_results(options.out, content, render(results))


def list_cases(system: str, options: argparse.Namespace, guidance: float) -> dict[str, Size]:
    """What is to be sampled, by name."""
    sizes = [Size(options.seconds, steps, guidance, frames=options.frames) for steps in options.steps or [_STEPS[system]]]
    if system != "vidmuse":
        return {f"{size.steps} steps": size for size in sizes}
    chosen = [replace(size, choice=choice) for size in sizes for choice in options.choices]
    names = ["all columns" if size.steps == _STEPS[system] else f"{size.steps} columns" for size in chosen]
    return {f"{name}, {'top ' * (one.choice != 'greedy')}{one.choice}": one for name, one in zip(names, chosen, strict=True)}


def run_case(name: str, size: Size, options: argparse.Namespace, rounds: Sequence[int]) -> dict[str, Found]:
    """All ways of one case: times, peaks, cold starts, and distances from the loop on the host."""
    with tempfile.TemporaryDirectory(prefix="musicrt-whole-loop-") as folder:
        asked = {"bundle": str(options.bundle), "size": asdict(size), "folder": folder, "threads": options.threads}
        say(f"{name}: composing …")
        steps = run_isolated(f"{_MODULE}:prepare_case", asked)["steps"]
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        processor: dict[str, list[float]] = {way: [] for way in WAYS}
        errors: dict[str, float] = {}
        for index, repeats in enumerate(rounds):
            first = index % len(WAYS)
            say(f"{name}: round {index + 1} of {len(rounds)}")
            order = [*WAYS[first:], *WAYS[:first]]
            answer = run_isolated(f"{_MODULE}:time_case", {**asked, "order": order, "repeats": repeats, "rest": options.rest})
            errors = answer["errors"]
            for way in WAYS:
                times[way] += answer["times"][way]
                processor[way] += answer["processor"][way]
        uses = {way: run_isolated(f"{_MODULE}:use_way", {**asked, "way": way}) for way in WAYS}
    measured = {
        way: Measurement(way, tuple(times[way]), None, (use["peak_mb"],), (use["cold_start"],), errors[way]) for way, use in uses.items()
    }
    return {way: Found(one, tuple(processor[way]), steps) for way, one in measured.items()}


def prepare_case(bundle: str, size: Mapping[str, Any], folder: str, threads: int | None) -> dict[str, int]:
    """In a fresh process: write the arrays that all ways are given, and the composed graphs, into a folder. Gives the number of steps."""
    import onnx

    from benchmarks.whole_loop.compose import Placing, compose

    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec:
        problem = PROBLEMS[codec.model.spec.system](codec.model.spec.config, Size(**size))
        arrays = problem.prepare(codec)
    np.savez(Path(folder) / _ARRAYS, allow_pickle=False, **arrays)
    graph, _ = Bundle.open(bundle).graph(problem.stage, ORT)
    steps = 0
    for placing in get_args(Placing):
        stage, sampler = onnx.load(graph, load_external_data=False), problem.sampler(arrays)
        model = compose(stage, sampler, problem.feeds(arrays), dict([problem.result]), placing)
        (Path(folder) / f"{placing}.onnx").write_bytes(model.SerializeToString())
        steps = sampler.steps
    return {"steps": steps}


def time_case(
    bundle: str, size: Mapping[str, Any], folder: str, threads: int | None, order: Sequence[str], repeats: int, rest: float
) -> dict[str, Any]:
    """In a fresh process: seconds of each run of all ways in turn, and how far their results are from that of the loop on the host."""
    kept: dict[str, Arrays] = {}
    processor: dict[str, list[float]] = {way: [] for way in order}
    runs = {way: open_way(way, bundle, size, folder, threads) for way in order}

    def call(way: str) -> None:
        start = time.process_time()
        kept[way] = runs[way]()
        processor[way].append(time.process_time() - start)

    times = time_in_turn({way: partial(call, way) for way in order}, repeats, rest)
    errors = {way: relative_error(kept[way], kept[HOST]) for way in order}
    return {"times": times, "processor": {way: values[-repeats:] for way, values in processor.items()}, "errors": errors}


def use_way(way: str, bundle: str, size: Mapping[str, Any], folder: str, threads: int | None) -> dict[str, float]:
    """In a fresh process: seconds from its start to the first result, and the peak of it after a second one."""
    run = open_way(way, bundle, size, folder, threads)
    run()
    cold = since_start()
    run()
    return {"cold_start": cold, "peak_mb": peak_memory_mb()}


def open_way(way: str, bundle: str, size: Mapping[str, Any], folder: str, threads: int | None) -> Run:
    """A run of one way on what `prepare_case` wrote. No session is opened but that of the network, or of the whole graph."""
    opened = Bundle.open(bundle)
    problem = PROBLEMS[opened.spec.system](opened.spec.config, Size(**size))
    with np.load(Path(folder) / _ARRAYS) as saved:
        arrays = {name: saved[name] for name in saved.files}
    if way == HOST:
        return problem.host(Model.open(bundle, backend=OnnxCpu.name, threads=threads), arrays)
    from benchmarks.whole_loop.compose import open_model

    feeds = problem.feeds(arrays)
    call = open_model((Path(folder) / _GRAPHS[way]).read_bytes(), opened.graph(problem.stage, ORT)[0].parent, threads)
    return lambda: call(feeds)


def render(results: Results) -> str:
    """A table for each case."""
    sections = []
    for name, ways in results.items():
        host, rows = ways[HOST], []
        for way, found in ways.items():
            one, used = found.measurement, median(found.processor)
            times = [f"{one.p50 * 1e3:.1f} ({min(one.times) * 1e3:.1f})", f"{host.measurement.p50 / one.p50:.2f}"]
            times += [f"{used * 1e3:.1f} ({min(found.processor) * 1e3:.1f})", f"{used * 1e3 / found.steps:.2f}"]
            times += [f"{median(host.processor) / used:.2f}"]
            rest = [f"{one.peak_mb:.0f}", f"{one.cold_start:.2f}", "–" if way == HOST else f"{one.error:.1e}"]
            rows.append([way, *times, *rest])
        sections += [f"## {name}: {host.steps} steps, {len(host.processor)} runs", markdown_table(_HEADER, rows)]
    return "\n\n".join([*sections, " ".join(_NOTE.split())])


_HEADER = (
    *("", "ms, median (best)", "times as fast", "processor ms, median (best)", "each step", "times as fast"),
    *("peak MB", "cold start, s", "distance"),
)
_MODULE = "benchmarks.whole_loop.compare"  # not __name__, which is __main__ where this is run
_ARRAYS = "arrays.npz"
_GRAPHS = {OUTSIDE: "outside.onnx", INSIDE: "inside.onnx"}
_NOTE = """
Times are those of whole samplers, from the noise to the last step, without what is computed once before. Processor: time of all threads on
the processors; waiting for other work of the machine does not count, what threads spend on looking for work does. Distance: relative L2
from the result of the loop on the host; of tokens, the share that differs. Peak and cold start: of a process that runs one way only; the
composed graph is read from a file, so composing it is not a part of either.
"""

if __name__ == "__main__":
    sys.exit(launch(main))
