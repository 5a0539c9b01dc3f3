"""One step of the language model with guidance: against the networks as officially run, and against the machine's memory.

A step is measured behind so many columns that are in the caches. All lengths run in turn in one process for each contender and round,
and so do, with the bundle, a copy and a read of arrays that no cache holds. Before each call the process rests, because
threads of ONNX Runtime and torch go on waiting for work for a while, which a copy would suffer from; and with ONNX Runtime the same call
runs a few times right before the one that is timed, as the steps of a loop do.

`onnxruntime-cpu:int8` among the contenders is the lowered language model of a bundle that was calibrated
(`musicrt calibrate BUNDLE --target cpu-int8`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import open_contender, split_name
from benchmarks.results import describe_run, launch, suite_parser, write_results
from benchmarks.rounds import add_contest_options, compare_kept, keep_outputs, prepare_opening, run_contest, time_in_turn
from benchmarks.vidmuse.step_tables import COPY, READ, render, render_quality
from benchmarks.vidmuse.workload import Contender, Part, Workload, list_parts
from musicrt.runtime.bench.peaks import MEGABYTES, Memory
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, describe_environment, peak_memory_mb

_CONTENDERS = ["eager", "torch-cpu", "onnxruntime-cpu"]
_TASK = "steps"
_WORK = ("tokens", "array", "ahead", "rest")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("vidmuse.step", "A step of the language model, by the columns in its caches.")
    add_contest_options(parser, repeats=20, rounds=2)
    parser.set_defaults(contenders=_CONTENDERS)
    parser.add_argument("--slow-repeats", type=int, default=1, help="of all but onnxruntime-cpu, in each round (default: %(default)s)")
    parser.add_argument("--columns", type=int, nargs="+", default=[0, 250, 750, 1450], help="in the caches (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=3000, help="of the condition, 100 for a second of video (default: %(default)s)")
    parser.add_argument("--array", type=int, default=MEGABYTES, help="MB of the arrays that are copied and read (default: %(default)s)")
    parser.add_argument("--ahead", type=int, default=4, help="calls right before each timed one of onnxruntime-cpu (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.2, help="seconds before each call (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = [part.name for part in list_parts({"step": options.columns})]
    settings = {name: getattr(options, name) for name in ("tokens", "repeats", "slow_repeats", "rounds", "array", "ahead", "rest")}
    content = describe_run("step", options.bundle, settings, options.threads)
    opening = prepare_opening(options, "benchmarks.vidmuse.baselines")
    threads = options.threads or describe_environment()["cores"]
    work = {"parts": parts, "slow": options.slow_repeats, "threads": threads, **{n: settings[n] for n in _WORK}}
    rounds = split_repeats(options.repeats, options.rounds)
    with tempfile.TemporaryDirectory(prefix="musicrt-outputs-") as folder:
        results = run_contest(_MODULE, options.contenders, [_TASK], rounds, {"opening": opening, "work": {**work, "outputs": folder}})
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    content["calibration"] = read_quality(options.bundle)
    tables = render(results, Workload.build(opening["config"], options.tokens), 2e6 * options.array)
    write_results(options.out, content, tables + render_quality(content["calibration"]))


def read_quality(bundle: Path) -> dict[str, float]:
    """What the bundle's calibration to 8-bit integers measured of generation; empty without one. Raises BundleError."""
    found = Bundle.open(bundle).manifest.calibrations.get("cpu-int8")
    return {name: value for name, value in found.quality.items() if name.startswith(("generate", "lm"))} if found else {}


def time_contender(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, repeats: int) -> dict[str, Any]:
    """See `run_contest`. Keeps what the last steps gave in the folder `outputs`."""
    del task
    contender: Contender = open_contender(**opening)
    workload, kept = Workload.build(opening["config"], work["tokens"]), dict[str, Any]()
    steps = {name: contender.prepare(Part.parse(name), workload) for name in work["parts"]}
    calls: dict[str, Any] = {name: lambda name=name, step=step: kept.__setitem__(name, step()["logits"]) for name, step in steps.items()}
    if opening["name"] != "eager":
        memory = Memory(work["threads"], work["array"])
        calls |= {COPY: memory.copy, READ: memory.read}
    looped = split_name(opening["name"])[0] == "onnxruntime-cpu"
    times = time_in_turn(calls, repeats if looped else work["slow"], work["rest"], work["ahead"] if looped else 0)
    for name, logits in kept.items():
        keep_outputs(opening, work, name, {"logits": logits})
    peak = peak_memory_mb()
    seconds = {name: Part.parse(name).seconds for name in steps}
    return {"measurements": [Measurement(name, tuple(values), seconds.get(name), (peak,)).to_json() for name, values in times.items()]}


def compare_contender(opening: Mapping[str, Any], work: Mapping[str, Any], tasks: Sequence[str], reference: str) -> dict[str, float]:
    """See `run_contest`. Compares what was kept of every part."""
    del tasks
    return compare_kept(opening, work, work["parts"], reference)


_MODULE = "benchmarks.vidmuse.step"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
