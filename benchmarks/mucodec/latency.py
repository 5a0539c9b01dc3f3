"""Latency of MusicRT against the networks as officially run and against their plain ONNX exports, part by part.

A whole window takes minutes, so the size of every part is an option, parts may be measured one by one (`--parts`), and those of
earlier runs put together with others (`--with`). Every contender runs every part in a fresh process, which is warmed up by a smaller
part of the same kind; the rounds go over the contenders in turn. What is timed last is also what is compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import open_contender
from benchmarks.mucodec.window import render_window
from benchmarks.mucodec.workload import GUIDANCE, KINDS, Contender, Part, Workload, list_parts
from benchmarks.results import describe_run, launch, suite_parser, write_results
from benchmarks.rounds import Results, add_contest_options, compare_kept, keep_outputs, prepare_opening, run_contest
from benchmarks.tables import render_contest
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import Measurement, measure, peak_memory_mb

_SIZES: dict[str, list[float]] = {
    "muq": [1024],
    "encode": [10.0, 40.9],
    "prepare": [512],
    "step": [32, 128],
    "vae": [32],
    "vocoder": [160],
}
NOTE = (
    "muq: one window; eager and plain-onnx run all of MuQ's layers, with batch norms of their own and matrices of scores, but not its "
    "prediction head; the last hidden state is an output of plain-onnx, so that no layer falls away. encode: eager and plain-onnx compute "
    "two windows or more of every clip. prepare: what is done once per window, condition and, not in eager and plain-onnx, context "
    "tokens and the time embeddings of 20 steps. step: both rows of guidance as a batch; eager has torch's fused attention, as diffusers "
    "has; eager and plain-onnx embed time, positions, context and condition in it. vae: both channels as a batch, with a matrix of "
    "scores, in eager and plain-onnx, one by one in MusicRT. vocoder: overlapping chunks in eager and plain-onnx; on some CPUs torch 2.13 "
    "gets transposed convolutions wrong, and so eager, which shows in the distances of all others from it. "
    "eager does not load what the official files hold for training only. Peak memory is that of a process that does nothing else."
)


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("mucodec.latency", "Latency of parts, and of a whole window by measured parts.")
    add_contest_options(parser, repeats=2, rounds=2)
    for kind, unit in KINDS.items():
        parser.add_argument(f"--{kind}", type=float, nargs="+", default=_SIZES[kind], metavar=unit.upper(), help="default: %(default)s")
    parser.add_argument("--parts", nargs="*", choices=list(KINDS), default=list(KINDS), help="which of them are measured; default: all")
    parser.add_argument("--channels", type=int, choices=(1, 2), default=2, help="of vae and vocoder (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50], help="of the whole windows (default: %(default)s)")
    parser.add_argument("--with", dest="earlier", type=Path, nargs="+", default=[], help="JSON files of this suite whose parts are added")
    options = parser.parse_args(arguments)
    parts = [part.name for part in list_parts({kind: getattr(options, kind) for kind in options.parts}, options.channels)]
    settings = {"guidance": GUIDANCE, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("latency", options.bundle, settings, options.threads)
    results = read_earlier(options.earlier, content)
    opening = prepare_opening(options, "benchmarks.mucodec.baselines")
    if parts:
        for name, rows in _measure(options, opening, parts).items():
            results.setdefault(name, {}).update(rows)
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    names = sorted({name for rows in results.values() for name in rows}, key=_order)
    window = render_window(results, Workload.build(opening["config"]), options.steps)
    write_results(options.out, content, f"{render_contest(results, names, (), NOTE)}\n\n{window}".strip())


def _measure(options: argparse.Namespace, opening: Mapping[str, Any], parts: Sequence[str]) -> Results:
    rounds = split_repeats(options.repeats, options.rounds)
    with tempfile.TemporaryDirectory(prefix="musicrt-outputs-") as folder:
        return run_contest(_MODULE, options.contenders, parts, rounds, {"opening": opening, "work": {"outputs": folder}})


def _order(name: str) -> tuple[int, float, int]:
    part = Part.parse(name)
    return list(KINDS).index(part.kind), part.size, part.channels


def read_earlier(files: Sequence[Path], head: Mapping[str, Any]) -> Results:
    """The measurements of earlier results, later files first. Raises InputError for those of other weights, or of another machine."""
    results: Results = {}
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            same = all(_conditions(found)[key] == value for key, value in _conditions(head).items())
            measured = {name: [Measurement.from_json(one) for one in rows] for name, rows in found["measurements"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is no result of this suite ({type(error).__name__}); pass an OUT.json of mucodec.latency") from error
        if not same:
            raise InputError(f"{file} was measured with other weights, threads, versions or on another machine; measure it again")
        for name, rows in measured.items():
            results.setdefault(name, {}).update({one.name: one for one in rows})
    return results


def _conditions(content: Mapping[str, Any]) -> dict[str, Any]:
    environment = content["environment"]
    return {
        "suite": content["suite"],
        "identity": content["model"]["identity"],
        "threads": content["settings"]["threads"],
        **{key: environment[key] for key in ("cpu", "cores", "versions")},
    }


def time_contender(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, repeats: int) -> dict[str, Any]:
    """See `run_contest`. Keeps what the last call gave in the folder `outputs`."""
    contender: Contender = open_contender(**opening)
    workload, part = Workload.build(opening["config"]), Part.parse(task)
    contender.prepare(part.small, workload)()
    call, kept = contender.prepare(part, workload), dict[str, Any]()
    times = measure(lambda: kept.update(call()), 0, repeats)
    measured = Measurement(task, times, part.seconds, (peak_memory_mb(),))
    keep_outputs(opening, work, task, kept)
    return {"measurements": [measured.to_json()]}


compare_contender = compare_kept
_MODULE = "benchmarks.mucodec.latency"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
