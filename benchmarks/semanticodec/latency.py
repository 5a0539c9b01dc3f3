"""Latency of MusicRT against the networks as officially run and against their plain ONNX exports.

Every contender runs every task in a fresh process; the rounds go over the contenders in turn, so that whatever else the
machine does meets all of them alike. While they are timed, contenders draw noise in their own way; their results are compared
on the same noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.charts import draw_bars
from benchmarks.contenders import open_contender
from benchmarks.results import describe_run, launch, suite_parser, write_results
from benchmarks.rounds import (
    ALL_STAGES,
    Outputs,
    add_contest_options,
    compare_outputs,
    prepare_opening,
    run_contest,
    run_stages,
    time_stages,
    time_task,
)
from benchmarks.semanticodec.workload import GUIDANCE, STAGES, Contender, Workload
from benchmarks.tables import render_contest
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.loops.ddim import uniform_timesteps

_LONG = "encode long"
_KINDS = ("encode", "long", "decode", ALL_STAGES)
NOTE = (
    "Evaluation: the U-Net for both rows of guidance, in eager and plain-onnx as two calls that hold the conditioning, too. "
    "Conditioning: keys and values of all context attentions for both rows; MusicRT keeps those of the row without tokens. "
    "Residual: the LSTM and its projection. eager and plain-onnx encode one segment after the other, and run the vocoder to the end "
    "of the window. eager does not load what the official files hold for training only. Cold start: from the start of the process "
    "to the first result."
)


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    description = "Latency against the official way of running and a plain ONNX export; draws OUT.png, too."
    parser = suite_parser("semanticodec.latency", description)
    add_contest_options(parser, repeats=3, rounds=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="audio that is encoded and decoded (default: %(default)s)")
    parser.add_argument("--long", type=float, default=60.0, help="seconds of the long file that is encoded (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 50], help="sampling steps of the decodes (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=_KINDS, default=list(_KINDS), help="default: all")
    options = parser.parse_args(arguments)
    names = {
        "encode": ["encode"],
        "long": [_LONG],
        "decode": [f"decode, {steps} step{'s' * (steps > 1)}" for steps in options.steps],
        ALL_STAGES: [ALL_STAGES],
    }
    tasks = [name for kind in _KINDS if kind in options.tasks for name in names[kind]]
    whole = [task for task in tasks if task != ALL_STAGES]
    work = {"seconds": options.seconds, "long": options.long}
    settings = {**work, "guidance": GUIDANCE, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("latency", options.bundle, settings, options.threads)
    rounds = split_repeats(options.repeats, options.rounds)
    asked = {"opening": prepare_opening(options, "benchmarks.semanticodec.baselines"), "work": work}
    results = run_contest(_MODULE, options.contenders, tasks, rounds, asked)
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    write_results(options.out, content, render_contest(results, whole, STAGES, NOTE))
    medians = {name: [rows[task].p50 for task in whole] for name, rows in results.items()}
    draw_bars(options.out.with_name(options.out.name + ".png"), whole, medians)


def time_contender(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, repeats: int) -> dict[str, Any]:
    """See `run_contest`."""
    contender: Contender = open_contender(**opening)
    workload = Workload.build(opening["config"], work["seconds"])
    if task == ALL_STAGES:
        return time_stages(contender.stages(workload), STAGES, repeats, workload.decoded_seconds)
    seconds = {"encode": workload.seconds, _LONG: work["long"]}.get(task, workload.decoded_seconds)
    return time_task(task, _task_call(contender, workload, task, seconds), repeats, seconds)


def _task_call(contender: Contender, workload: Workload, task: str, seconds: float) -> Callable[[], object]:
    if task.startswith("encode"):
        audio = workload.audio(seconds)
        return lambda: contender.encode(audio)
    tokens, steps = workload.tokens, _steps(task)
    return lambda: contender.decode(tokens, steps)


def _steps(task: str) -> int:
    return int(task.split()[1])


def compare_contender(opening: Mapping[str, Any], work: Mapping[str, Any], tasks: Sequence[str], reference: str) -> dict[str, float]:
    """See `run_contest`."""
    contender: Contender = open_contender(**opening)
    workload = Workload.build(opening["config"], work["seconds"])
    produced: dict[str, Outputs] = {}
    for task in tasks:
        if task == ALL_STAGES:
            produced.update(run_stages(contender.stages(workload), STAGES))
        elif task.startswith("encode"):
            produced[task] = {"tokens": contender.encode(workload.audio(work["long"] if task == _LONG else None))}
        else:
            noise = workload.noise(1 + len(uniform_timesteps(_steps(task), 1000)))
            produced[task] = {"audio": contender.decode(workload.tokens, _steps(task), noise)}
    return compare_outputs(produced, reference, keep=opening["name"] == "eager")


_MODULE = "benchmarks.semanticodec.latency"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
