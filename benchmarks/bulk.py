"""Throughput of `musicrt batch` with one worker and with more, each of one thread.

    python -m benchmarks.bulk --bundle BUNDLE --workers 1 2 --out OUT

Files of synthesised music are encoded, and then decoded again, by pools in turn. Beside the whole of a run, which opens the bundle in every
worker, stands what it does from the end of the first file to that of the last.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.bulk.batch import run_job
from musicrt.bulk.cluster import Pool, connected
from musicrt.bulk.corpus import find_corpus
from musicrt.bulk.job import Job, plan_job
from musicrt.bulk.outputs import open_outputs
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import markdown_table, synthesise_music


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("bulk", "Throughput of `musicrt batch` with one worker and with more.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="pools that are compared")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="denoising steps; the system's own number by default")
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parsed = parser.parse_args(arguments)
    threads = parsed.threads or 1
    settings = {name: getattr(parsed, name) for name in ("workers", "files", "seconds", "rounds", "steps", "backend")}
    runs: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder, connected():
        music = Path(folder, "music")
        music.mkdir()
        rate = Bundle.open(parsed.bundle).spec.sample_rate
        for index in range(parsed.files):
            write_audio(music / f"{index}.wav", synthesise_music(parsed.seconds, rate), rate)
        options = {} if parsed.steps is None else {"steps": parsed.steps}
        jobs = [
            plan_job("encode", parsed.bundle, backend=parsed.backend, threads=threads),
            plan_job("decode", parsed.bundle, options, backend=parsed.backend, threads=threads),
        ]
        for turn in range(parsed.rounds):
            for workers in parsed.workers:
                source = music
                for job in jobs:
                    target = Path(folder, f"{job.way}-{workers}-{turn}")
                    runs.append({"way": job.way, "workers": workers, "round": turn + 1, **_time(job, source, target, workers)})
                    say(f"{job.way}, {workers} workers, round {turn + 1}: {runs[-1]['whole']:.1f} s")
                    source = target
    write_results(parsed.out, {**describe_run("bulk", parsed.bundle, settings, threads), "runs": runs}, render(runs))


def _time(job: Job, source: Path, target: Path, workers: int) -> dict[str, Any]:
    """Seconds of a run, seconds of audio, and when each file was done. A lot is one file, so that the ends of all are seen."""
    ends: list[float] = []
    begun = time.perf_counter()
    summary = run_job(
        job,
        find_corpus(source, job.suffixes),
        open_outputs(target, "files", job.suffix),
        Pool(workers, job.threads or 1, lot=1),
        on_progress=lambda _done, _total: ends.append(time.perf_counter() - begun),
    )
    return {"whole": time.perf_counter() - begun, "audio": summary.seconds, "failed": len(summary.failed), "ends": ends}


def rate_of(run: Mapping[str, Any]) -> float:
    """Seconds of audio for each second, once the first file is done; all are of one length."""
    ends = run["ends"]
    return float(run["audio"] * (len(ends) - 1) / len(ends) / (ends[-1] - ends[0]))


def render(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run, and how many times the throughput of the smallest pool the others have."""
    rows = [
        [
            run["way"],
            str(run["workers"]),
            str(run["round"]),
            f"{run['whole']:.1f}",
            f"{run['audio'] / run['whole']:.1f}",
            f"{rate_of(run):.1f}",
        ]
        for run in runs
    ]
    header = ("way", "workers", "round", "whole run, s", "audio s per s, whole", "audio s per s, once it runs")
    lines = [markdown_table(header, rows)]
    for way in dict.fromkeys(run["way"] for run in runs):
        pools = sorted({run["workers"] for run in runs})
        rates = [statistics.median(rate_of(run) for run in runs if (run["way"], run["workers"]) == (way, pool)) for pool in pools]
        told = ", ".join(f"{pool} workers {rate / rates[0]:.2f}" for pool, rate in zip(pools[1:], rates[1:], strict=True))
        lines.append(
            f"{way}, once it runs: {rates[0]:.1f} s of audio a second with {pools[0]} worker; times as much with {told} (medians)."
        )
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(launch(main))
