"""Latency of MusicRT against the network as officially run and against its plain ONNX export.

Every contender runs every task in a fresh process; the rounds go over the contenders in turn, so that whatever else the
machine does meets all of them alike. Torch generators, numpy generators and seeds differ in cost, so each contender draws
its noise in its own way while it is timed, and gets the same arrays when its results are compared with those of `eager`.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.charts import draw_bars
from benchmarks.contenders import BASELINES, open_contender
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.workload import STAGES, Contender, Workload
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import Measurement, markdown_table, measure, peak_memory_mb, run_isolated, since_start
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.verify import relative_error

_CONTENDERS = (*BASELINES, "torch-cpu", "onnxruntime-cpu")
_TASKS = ("encode", "decode, 1 step", "decode, 4 steps")
Results = dict[str, dict[str, Measurement]]
"""By contender, then by task or stage."""


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("latency", "Latency against the official way of running and a plain ONNX export; draws OUT.png, too.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--cache", type=Path, default=Path("build/plain-onnx"), help="where plain exports are kept (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of the audio (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each task in all (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes that share them (default: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=list(_CONTENDERS), help="default: %(default)s")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("latency", options.bundle, settings, options.threads)
    opening = {
        "bundle": str(options.bundle),
        "checkpoint": str(options.checkpoint),
        "plain": "",
        "config": dict(Bundle.open(options.bundle).spec.config),
        "threads": options.threads,
    }
    if "plain-onnx" in options.contenders:
        say("plain export …")
        exported = {"checkpoint": str(options.checkpoint), "config": opening["config"], "cache": str(options.cache)}
        opening["plain"] = run_isolated("benchmarks.baselines:export_plain", exported)["folder"]
    results = run_rounds(opening, options.contenders, options.seconds, split_repeats(options.repeats, options.rounds))
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    write_results(options.out, content, render(results))
    medians = {name: [rows[task].p50 for task in _TASKS] for name, rows in results.items()}
    draw_bars(options.out.with_name(options.out.name + ".png"), _TASKS, medians)


def split_repeats(repeats: int, rounds: int) -> list[int]:
    """How many repeats each round takes. Raises InputError."""
    if not 1 <= rounds <= repeats:
        raise InputError(f"got {rounds} rounds and {repeats} repeats, expected from 1 round to one for each repeat")
    return [repeats // rounds + (index < repeats % rounds) for index in range(rounds)]


def run_rounds(opening: Mapping[str, Any], contenders: Sequence[str], seconds: float, rounds: Sequence[int]) -> Results:
    """Time all contenders in turn, round after round, then compare their results."""
    parts: dict[str, dict[str, list[Measurement]]] = {name: defaultdict(list) for name in contenders}
    errors: dict[str, dict[str, float]] = {}
    for index, repeats in enumerate(rounds):
        for task in (*_TASKS, "stages"):
            for name in (*contenders[index % len(contenders) :], *contenders[: index % len(contenders)]):  # another one first each time
                say(f"round {index + 1} of {len(rounds)}: {task}: {name}")
                arguments = {"opening": {"name": name, **opening}, "task": task, "seconds": seconds, "repeats": repeats}
                for values in run_isolated(f"{_MODULE}:time_contender", arguments)["measurements"]:
                    parts[name][values["name"]].append(Measurement.from_json(values))
    with tempfile.TemporaryDirectory(prefix="musicrt-latency-") as folder:
        for name in sorted(contenders if "eager" in contenders else (), key=lambda name: name != "eager"):
            say(f"results: {name}")
            arguments = {"opening": {"name": name, **opening}, "seconds": seconds, "reference": str(Path(folder) / "eager.npz")}
            errors[name] = run_isolated(f"{_MODULE}:compare_contender", arguments)
    return {
        name: {row: replace(Measurement.merge(measured), error=errors.get(name, {}).get(row)) for row, measured in rows.items()}
        for name, rows in parts.items()
    }


def time_contender(opening: Mapping[str, Any], task: str, seconds: float, repeats: int) -> dict[str, Any]:
    """In a fresh process: one task, or all stages."""
    contender = open_contender(**opening)
    work = Workload.build(Config.from_mapping(opening["config"]), seconds)
    if task == "stages":
        stages = contender.stages(work)
        measured = [Measurement(name, measure(stages[name], 1, repeats), work.decoded_seconds) for name in STAGES if name in stages]
        return {"measurements": [m.to_json() for m in measured]}
    call = _task_call(contender, work, task)
    call()
    cold = since_start()  # the first call is the warm-up of the others
    times, peak = measure(call, 0, repeats), peak_memory_mb()
    return {"measurements": [Measurement(task, times, work.decoded_seconds, (peak,), (cold,)).to_json()]}


def _task_call(contender: Contender, work: Workload, task: str) -> Callable[[], object]:
    if task == "encode":
        return lambda: contender.encode(work.audio)
    steps = _steps(task)
    return lambda: contender.decode(work.latents, steps)


def _steps(task: str) -> int:
    return int(task.split()[1])


def compare_contender(opening: Mapping[str, Any], seconds: float, reference: str) -> dict[str, float]:
    """In a fresh process: relative L2 distance of every result from the file `reference`, which `eager` writes."""
    contender = open_contender(**opening)
    work = Workload.build(Config.from_mapping(opening["config"]), seconds)
    produced: dict[str, dict[str, Any]] = {"encode": {"latents": contender.encode(work.audio)}}
    for task in _TASKS[1:]:
        produced[task] = {"audio": contender.decode(work.latents, _steps(task), work.noise(_steps(task)))}
    stages = contender.stages(work)
    for name in STAGES:
        if name in stages and name != "noise":
            produced[name] = {key: value.copy() for key, value in stages[name]().items()}
    if opening["name"] == "eager":
        flat: dict[str, Any] = {f"{row}/{key}": value for row, outputs in produced.items() for key, value in outputs.items()}
        np.savez(reference, **flat)
        return {}
    with np.load(reference) as saved:
        expected: dict[str, dict[str, Any]] = defaultdict(dict)
        for place in saved.files:
            row, _, key = place.partition("/")
            expected[row][key] = saved[place]
    return {row: relative_error(outputs, expected[row]) for row, outputs in produced.items()}


def render(results: Results) -> str:
    """Tables of times, ratios, memory and errors."""
    contenders = list(results)
    rows = [row for row in (*_TASKS, *STAGES) if any(row in measured for measured in results.values())]

    def table(rows: Sequence[str], cell: Callable[[str, str], str]) -> str:
        cells = [[row, *(cell(name, row) if row in results[name] else "–" for name in contenders)] for row in rows]
        return markdown_table(("", *contenders), cells)

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    def times(name: str, row: str) -> str:
        return f"{results[name][row].p50 * 1e3:.1f} ({results[name][row].p95 * 1e3:.1f})"

    def speed_table(base: str) -> str:
        return table([row for row in rows if row in results[base]], lambda n, r: f"{results[base][r].p50 / results[n][r].p50:.2f}")

    sections = ["## Milliseconds, median (95th percentile)", table(rows, times)]
    for base in BASELINES:
        if base in results:
            sections += [f"## Times as fast as {base}", speed_table(base)]
    sections += [
        "## Processing time for each second of audio, s",
        table(_TASKS, lambda n, r: number(results[n][r].real_time_factor, ".3f")),
        "## Peak memory, MB / cold start, s",
        table(_TASKS, lambda n, r: f"{number(results[n][r].peak_mb, '.0f')} / {number(results[n][r].cold_start, '.2f')}"),
        "## Relative L2 distance from eager",
        table([row for row in rows if row != "noise"], lambda n, r: number(results[n][r].error, ".1e")),
        "Step: one U-Net evaluation, the pyramid given. Evaluation: pyramid and step, from latents. In eager and plain-onnx the "
        "conditioning is a part of every step. Cold start: from the start of the process to the first result.",
    ]
    return "\n\n".join(sections)


_MODULE = "benchmarks.latency"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
