"""Runs a target under atheris, which is guided by the coverage of the package's code: python -m tools.fuzz manifest --seconds 60

Needs `pip install atheris`, which is in no extra. What is found lies in the folder as crash-*, timeout-* or oom-*: mend it, make it small,
and put it among the inputs of tests/runtime/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path

import atheris

MEGABYTES = 2048
SECONDS = 20
"""What a single input may take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("fuzz"), help="where inputs are kept from run to run, and findings")
    arguments = parser.parse_args()
    with atheris.instrument_imports(include=["musicrt", "typer"]):  # targets import some of these when they run, which is too late
        import musicrt.cli.app
        import musicrt.runtime.backends.torch_weights
        import musicrt.runtime.checkpoint
        import musicrt.runtime.muxing
        import musicrt.runtime.video  # noqa: F401
        from tools.fuzz.targets import TARGETS, run_target
    if arguments.target not in TARGETS:
        parser.error(f"got {arguments.target!r}, expected one of {', '.join(TARGETS)}")
    logging.disable()
    corpus = arguments.folder / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[arguments.target].seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = {
        "max_total_time": arguments.seconds,
        "timeout": SECONDS,
        "rss_limit_mb": MEGABYTES,
        "max_len": 1 << 16,
        "artifact_prefix": f"{arguments.folder}/{arguments.target}-",
        "print_final_stats": 1,
    }
    given = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(given, lambda data: run_target(arguments.target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
