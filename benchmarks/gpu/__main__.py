"""One command for a machine with an NVIDIA GPU: are kernels and loops right there, and how fast is a step? Other machines are refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.tables import render
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.driver import cuda_obstacle, device_obstacle
from musicrt.runtime.errors import BackendError, MusicRTError
from musicrt.runtime.measure import run_isolated
from musicrt.runtime.select import BACKENDS

ON_GPU = tuple(name for name, kind in BACKENDS.items() if kind.device == "cuda")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises BackendError where there is no GPU, where a check failed or a backend that was asked for did not run (results
    are written before that), MusicRTError.
    """
    parser = suite_parser("gpu", "Kernels and sampling loops on a GPU: against the host's, and the time of a step.")
    parser.add_argument("--backends", nargs="+", choices=ON_GPU, help="default: all that can run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of a codec's sampler (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each loop (default: %(default)s)")
    options = parser.parse_args(arguments)
    if reason := cuda_obstacle() or device_obstacle():
        raise BackendError(f"there is no GPU to check here: {reason}; run this on a machine with an NVIDIA GPU and its driver")
    settings = {name: getattr(options, name) for name in ("seconds", "steps", "repeats")}
    content = describe_run("gpu", options.bundle, settings, options.threads)
    say("kernels …")
    content["device"] = run_isolated("benchmarks.gpu.measuring:check_device", {})
    asked = {"bundle": str(options.bundle), "threads": options.threads, **settings}
    content["backends"] = {name: _measure(name, asked) for name in options.backends or ON_GPU}
    write_results(options.out, content, render(content["device"], content["backends"]))
    found = content["backends"].items()
    rows = [row["check"] for _, answer in found for row in answer.get("rows", ()) if row["check"]]
    wrong = [f"{check['name']} failed" for check in (*content["device"]["checks"], *rows) if check["failed"]]
    wrong += [f"{name} did not run" for name, answer in found if "obstacle" in answer and options.backends]
    if wrong:
        raise BackendError(f"{'; '.join(wrong)}; see {options.out.name}.md")


def _measure(backend: str, asked: dict[str, Any]) -> dict[str, Any]:
    say(f"{backend} …")
    try:
        return run_isolated("benchmarks.gpu.measuring:measure_backend", {"backend": backend, **asked})
    except MusicRTError as error:
        return {"obstacle": str(error)}


if __name__ == "__main__":
    sys.exit(launch(main))
