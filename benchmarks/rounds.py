"""Contenders against each other: fresh processes, rounds in turn, and results held against those of the first of them."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import say
from musicrt.runtime.bench.rounds import in_turn
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, measure, measure_task, run_isolated
from musicrt.runtime.verify import relative_error

BASELINES = ("eager", "plain-onnx")
"""What MusicRT is compared with; `eager` is also the reference of all errors."""
CONTENDERS = (*BASELINES, "torch-cpu", "onnxruntime-cpu")
ALL_STAGES = "stages"
"""The task that times every stage on its own."""
Results = dict[str, dict[str, Measurement]]
"""By contender, then by task or stage."""
Outputs = Mapping[str, NDArray[Any]]


def add_contest_options(parser: argparse.ArgumentParser, repeats: int, rounds: int) -> None:
    """What every suite of contenders is asked."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--cache", type=Path, default=Path("build/plain-onnx"), help="where plain exports are kept (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each task in all (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="fresh processes that share them (default: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), help="default: %(default)s")


def prepare_opening(options: argparse.Namespace, baselines: str) -> dict[str, Any]:
    """What a child process opens contenders with. `baselines`: the module whose `export_plain` makes the plain export.

    Raises BundleError, CheckpointError, OutputError.
    """
    spec = Bundle.open(options.bundle).spec
    opening: dict[str, Any] = {
        "system": spec.system,
        "bundle": str(options.bundle),
        "checkpoint": str(options.checkpoint),
        "plain": "",
        "config": dict(spec.config),
        "threads": options.threads,
    }
    if "plain-onnx" in options.contenders:
        say("plain export …")
        exported = {"checkpoint": opening["checkpoint"], "config": opening["config"], "cache": str(options.cache)}
        opening["plain"] = run_isolated(f"{baselines}:export_plain", exported)["folder"]
    return opening


def run_contest(
    suite: str, contenders: Sequence[str], tasks: Sequence[str], rounds: Sequence[int], arguments: Mapping[str, Any]
) -> Results:
    """Time all contenders in turn, round after round, then hold their results against those of `eager`, if it takes part.

    `suite`: a module with `time_contender(opening, work, task, repeats)` and `compare_contender(opening, work, tasks, reference)`, which
    run in fresh processes; the first answers with the help of `time_task` and `time_stages`, the second with `compare_outputs`.
    `arguments`: `opening`, without the contender's name, and `work`. `rounds`: repeats of each.
    """
    parts: dict[str, dict[str, list[Measurement]]] = {name: defaultdict(list) for name in contenders}
    for index, repeats in enumerate(rounds):
        for task in tasks:
            for name in in_turn(contenders, index):
                say(f"round {index + 1} of {len(rounds)}: {task}: {name}")
                asked = {**_name(arguments, name), "task": task, "repeats": repeats}
                for values in run_isolated(f"{suite}:time_contender", asked)["measurements"]:
                    parts[name][values["name"]].append(Measurement.from_json(values))
    errors: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="musicrt-contest-") as folder:
        for name in sorted(contenders if "eager" in contenders else (), key=lambda name: name != "eager"):
            say(f"results: {name}")
            asked = {**_name(arguments, name), "tasks": list(tasks), "reference": str(Path(folder) / "eager.npz")}
            errors[name] = run_isolated(f"{suite}:compare_contender", asked)
    return {
        name: {row: replace(Measurement.merge(measured), error=errors.get(name, {}).get(row)) for row, measured in rows.items()}
        for name, rows in parts.items()
    }


def _name(arguments: Mapping[str, Any], contender: str) -> dict[str, Any]:
    return {**arguments, "opening": {**arguments["opening"], "name": contender}}


def time_task(name: str, call: Callable[[], object], repeats: int, audio_seconds: float) -> dict[str, Any]:
    """In a fresh process: a call with its cold start and the peak of the process."""
    measured, _ = measure_task(name, call, repeats, audio_seconds)
    return {"measurements": [measured.to_json()]}


def time_stages(stages: Mapping[str, Callable[[], object]], order: Sequence[str], repeats: int, audio_seconds: float) -> dict[str, Any]:
    """In a fresh process: every stage that the contender has."""
    measured = [Measurement(name, measure(stages[name], 1, repeats), audio_seconds) for name in order if name in stages]
    return {"measurements": [m.to_json() for m in measured]}


def run_stages(stages: Mapping[str, Callable[[], Outputs]], order: Sequence[str]) -> dict[str, Outputs]:
    """What every stage gives that the contender has; of `noise`, which nobody draws alike, nothing."""
    wanted = [name for name in order if name in stages and name != "noise"]
    return {name: {key: value.copy() for key, value in stages[name]().items()} for name in wanted}


def time_in_turn(calls: Mapping[str, Callable[[], object]], repeats: int, rest: float = 0.0, ahead: int = 0) -> dict[str, list[float]]:
    """Seconds of each repeat of each call, one call after the other in each repeat, after one round that is not timed.

    rest: seconds before each call, in which the threads of the one before stop waiting for more work. ahead: calls of the same that come
    right before each timed one and are not timed, as in a loop.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(repeats + 1):
        for name, call in calls.items():
            time.sleep(rest)
            (seconds,) = measure(call, ahead, 1)
            if index:
                times[name].append(seconds)
    return times


def compare_outputs(produced: Mapping[str, Outputs], reference: str, *, keep: bool) -> dict[str, float]:
    """The `relative_error` of every row against the file `reference`; `keep`: write that file instead, and answer with nothing."""
    if keep:
        flat: dict[str, Any] = {f"{row}/{key}": value for row, outputs in produced.items() for key, value in outputs.items()}
        np.savez(reference, **flat)
        return {}
    expected: dict[str, dict[str, Any]] = defaultdict(dict)
    with np.load(reference) as saved:
        for place in saved.files:
            row, _, key = place.partition("/")
            expected[row][key] = saved[place]
    return {row: relative_error(outputs, expected[row]) for row, outputs in produced.items()}


def keep_outputs(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, outputs: Outputs) -> None:
    """Leave what a contender gave for a task in the folder `outputs` of its work, for `compare_kept` in another process."""
    named: dict[str, Any] = dict(outputs)
    np.savez(_kept(opening, work, task), **named)


def compare_kept(opening: Mapping[str, Any], work: Mapping[str, Any], tasks: Sequence[str], reference: str) -> dict[str, float]:
    """`compare_outputs` of what a contender left. The `compare_contender` of suites whose results are too dear to be made twice."""
    produced: dict[str, Outputs] = {}
    for task in tasks:
        with np.load(_kept(opening, work, task), allow_pickle=False) as kept:
            produced[task] = dict(kept)
    return compare_outputs(produced, reference, keep=opening["name"] == "eager")


def _kept(opening: Mapping[str, Any], work: Mapping[str, Any], task: str) -> Path:
    return Path(work["outputs"]) / f"{opening['name'].replace(':', '-')}, {task}.npz"
