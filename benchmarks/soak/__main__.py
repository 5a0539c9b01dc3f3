"""Is every result right, and does the process stay as it is, however long it is asked for all kinds of things?

    python -m benchmarks.soak --bundle BUNDLE --seconds 3600 --threads 1 --out OUT

Every result is held, bit for bit, against what was computed alone before. The exit status is 0 only if all was right and nothing grew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.soak.report import render
from benchmarks.soak.rounds import Findings, soak
from benchmarks.soak.workload import Workload
from musicrt.runtime.errors import VerificationError
from musicrt.runtime.model import load

_COUNTS = ("clients", "workers", "queue", "steps")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises VerificationError where something was wrong (results are written before that), MusicRTError."""
    parser = suite_parser("soak", "Mixed requests for as long as one likes: right results, flat memory.")
    parser.add_argument("--backend", default="auto", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the soak (default: %(default)s)")
    parser.add_argument("--lengths", nargs="+", type=float, default=[0.3, 1.0, 7.0], help="of signals, in seconds (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of the sampler, where the system has them")
    parser.add_argument("--clients", type=int, default=4, help="threads that ask at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="of the service; default: its own")
    parser.add_argument("--queue", type=int, default=8, help="of the service (default: %(default)s)")
    options = parser.parse_args(arguments)
    counts = {name: getattr(options, name) for name in _COUNTS}
    with (
        tempfile.TemporaryDirectory(prefix="musicrt-soak-") as folder,
        load(options.bundle, backend=options.backend, threads=options.threads) as codec,
    ):
        settings = {"backend": codec.backend.name, "seconds": options.seconds, "lengths": options.lengths, **counts}
        content = describe_run("soak", options.bundle, settings, options.threads)
        say("every request once, alone …")
        work = Workload.prepare(codec, options.lengths, options.steps, Path(folder))
        findings = soak(codec, work, Path(folder), seconds=options.seconds, **counts)
    write_results(options.out, {**content, **describe(findings)}, render(findings))
    if findings.faults:
        raise VerificationError(f"{len(findings.faults)} faults, {findings.faults[0]} first; see {options.out.name}.md")


def describe(findings: Findings) -> dict[str, object]:
    """The raw values, as JSON values."""
    return {
        "outcomes": [
            {"kind": kind, "outcome": outcome, "count": count} for (kind, outcome), count in sorted(findings.tally.outcomes.items())
        ],
        "submitted": findings.tally.submitted,
        "events": dict(findings.events),
        "trends": {name: asdict(trend) for name, trend in findings.trends.items()},
        "faults": findings.faults,
        "samples": [asdict(sample) for sample in findings.samples],
    }


if __name__ == "__main__":
    sys.exit(launch(main))
