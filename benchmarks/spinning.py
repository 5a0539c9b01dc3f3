"""What idle threads of ONNX Runtime cost: the same round trip with threads that sleep between operators (the default) and that spin.

    python -m benchmarks.spinning --bundle BUNDLE --out OUT

Each round is a fresh process for each way, in turn. Beside the time by the clock stands that of all cores together, in a call and in the
tenth of a second after it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.backends.onnxruntime import SPINNING, OnnxCpu
from musicrt.runtime.measure import markdown_table, measure_idle, run_isolated, synthesise_music
from musicrt.runtime.model import load

WAYS: Mapping[str, str] = {"sleeping": "0", "spinning": "1"}
"""What the environment variable says, by way."""
_AFTER = 0.1


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("spinning", "What idle threads of ONNX Runtime cost.")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the audio (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=8, help="calls of each process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each way (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("spinning", options.bundle, settings, options.threads)
    asked = {"bundle": str(options.bundle), "threads": options.threads, "seconds": options.seconds, "repeats": options.repeats}
    content["calls"] = {name: [] for name in WAYS}
    for done in range(options.rounds):
        for name, value in WAYS.items():
            say(f"round {done + 1}: {name}")
            content["calls"][name].append(run_isolated(f"{_MODULE}:time_round_trips", asked, {SPINNING: value})["calls"])
    write_results(options.out, content, render(content["calls"]))


def time_round_trips(bundle: str, threads: int | None, seconds: float, repeats: int) -> dict[str, Any]:
    """In a fresh process. Of each call: seconds by the clock, of all cores, and of all cores in the time after it."""
    calls = []
    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec:
        audio = synthesise_music(seconds, codec.sample_rate)
        for _ in range(repeats + 1):
            begun, busy = time.perf_counter(), time.process_time()
            codec.decode(codec.encode(audio))
            taken, used = time.perf_counter() - begun, time.process_time() - busy
            calls.append([taken, used, measure_idle(_AFTER)])
    return {"calls": calls[1:]}


def render(calls: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> str:
    """The table: medians of each round, and how many times as much spinning takes."""
    medians = {name: [[statistics.median(column) for column in zip(*one, strict=True)] for one in rounds] for name, rounds in calls.items()}
    rows = [
        [name, str(index + 1), *(f"{1e3 * value:.0f}" for value in values)]
        for name, rounds in medians.items()
        for index, values in enumerate(rounds)
    ]
    ratios = [
        statistics.median(spun[column] / slept[column] for spun, slept in zip(medians["spinning"], medians["sleeping"], strict=True))
        for column in (0, 1)
    ]
    header = ("threads", "round", "median ms", "of all cores, ms", f"in the {_AFTER:g} s after, ms")
    table = markdown_table(header, rows, text_columns=2)
    return f"{table}\n\nSpinning takes {ratios[0]:.2f} times the time and {ratios[1]:.2f} times the CPU time (median of the rounds)."


_MODULE = "benchmarks.spinning"

if __name__ == "__main__":
    sys.exit(launch(main))
