"""Latency of MusicRT against the network as officially run and against its plain ONNX export.

Every contender runs every task in a fresh process; the rounds go over the contenders in turn, so that whatever else the
machine does meets all of them alike. Torch generators, numpy generators and seeds differ in cost, so each contender draws
its noise in its own way while it is timed, and gets the same arrays when its results are compared with those of `eager`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.charts import draw_bars
from benchmarks.contenders import open_contender
from benchmarks.music2latent.workload import STAGES, Contender, Workload
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
from benchmarks.tables import render_contest
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.models.music2latent.config import Config

TASKS = ("encode", "decode, 1 step", "decode, 4 steps")
NOTE = (
    "Step: one U-Net evaluation, the pyramid given. Evaluation: pyramid and step, from latents. In eager and plain-onnx the "
    "conditioning is a part of every step. Cold start: from the start of the process to the first result."
)


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    description = "Latency against the official way of running and a plain ONNX export; draws OUT.png, too."
    parser = suite_parser("music2latent.latency", description)
    add_contest_options(parser, repeats=7, rounds=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of the audio (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="these only; default: all, and each stage")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("latency", options.bundle, settings, options.threads)
    rounds = split_repeats(options.repeats, options.rounds)
    asked = {"opening": prepare_opening(options, "benchmarks.music2latent.baselines"), "work": {"seconds": options.seconds}}
    tasks = options.tasks or TASKS
    results = run_contest(_MODULE, options.contenders, tasks if options.tasks else (*TASKS, ALL_STAGES), rounds, asked)
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    write_results(options.out, content, render_contest(results, tasks, STAGES, NOTE))
    medians = {name: [rows[task].p50 for task in tasks] for name, rows in results.items()}
    draw_bars(options.out.with_name(options.out.name + ".png"), tasks, medians)


def time_contender(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, repeats: int) -> dict[str, Any]:
    """See `run_contest`."""
    contender: Contender = open_contender(**opening)
    workload = Workload.build(Config.from_mapping(opening["config"]), **work)
    if task == ALL_STAGES:
        return time_stages(contender.stages(workload), STAGES, repeats, workload.decoded_seconds)
    return time_task(task, _task_call(contender, workload, task), repeats, workload.decoded_seconds)


def _task_call(contender: Contender, workload: Workload, task: str) -> Callable[[], object]:
    if task == "encode":
        return lambda: contender.encode(workload.audio)
    steps = _steps(task)
    return lambda: contender.decode(workload.latents, steps)


def _steps(task: str) -> int:
    return int(task.split()[1])


def compare_contender(opening: Mapping[str, Any], work: Mapping[str, Any], tasks: Sequence[str], reference: str) -> dict[str, float]:
    """See `run_contest`."""
    contender: Contender = open_contender(**opening)
    workload = Workload.build(Config.from_mapping(opening["config"]), **work)
    produced: dict[str, Outputs] = {}
    for task in tasks:
        if task == ALL_STAGES:
            produced.update(run_stages(contender.stages(workload), STAGES))
        elif task == "encode":
            produced[task] = {"latents": contender.encode(workload.audio)}
        else:
            produced[task] = {"audio": contender.decode(workload.latents, _steps(task), workload.noise(_steps(task)))}
    return compare_outputs(produced, reference, keep=opening["name"] == "eager")


_MODULE = "benchmarks.music2latent.latency"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
