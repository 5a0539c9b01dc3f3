"""What the suite of a GPU found, in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from musicrt.runtime.measure import markdown_table

NOTE = (
    "Times are between two events on the GPU's stream, divided by the steps of the loop: for each run of a loop they hold what comes "
    "once, copies in and out included. Launches are kernels and copies of a step, gaps the time of a step in which none runs, both by "
    "torch's profiler (–: torch has no CUDA here), which slows down what is launched call by call. The floor is the time that a copy "
    "within the memory takes to read and write as many bytes as the network has weights: a step reads them all. The networks alone are "
    "single steps without sampler, choice or caches that fill."
)


def render(device: Mapping[str, Any], backends: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables. device: what `check_device` gave; backends: what `measure_backend` gave of each, or {"obstacle": why not}."""
    speed = device["copy"]
    ran = {name: found for name, found in backends.items() if "obstacle" not in found}
    checks = [*device["checks"], *(row["check"] for found in ran.values() for row in found["rows"] if row["check"])]
    failed, left_out = [check["name"] for check in checks if check["failed"]], sum(bool(check["note"]) for check in checks)
    verdict = f"{len(checks) - len(failed) - left_out} of {len(checks)} passed, {left_out} could not be run"
    sections = [
        f"{device['gpu']}, {device['architecture']}; a copy within its memory: {speed / 1e9:.0f} GB/s, read and written. "
        f"Checks: {verdict}{'; failed: ' if failed else ''}{', '.join(failed)}.",
        "## Kernels and loops against the host",
        "Relative L2 distance; of tokens the share that differs.",
        markdown_table(("", "error", "at most", ""), [_check_cells(check) for check in checks]),
    ]
    for name, found in ran.items():
        floor = None if found["weights"] is None else found["weights"] / speed
        told = "unknown without onnx" if floor is None else f"{floor * 1e3:.3f} ms for {found['weights'] / 1e6:.1f} MB of weights"
        sections += [f"## {name}: milliseconds for a step of {found['stage']!r}, median (best)"]
        sections += [f"{found['backend']}. {found['steps']} steps in a run. Floor: {told}."]
        header = ("", "ms", "of the floor", "launches", "gaps, ms")
        sections += [markdown_table(header, [_time_cells(row, floor, found["steps"]) for row in found["rows"]])]
    sections += [f"{name} did not run: {found['obstacle']}." for name, found in backends.items() if "obstacle" in found]
    return "\n\n".join([*sections, NOTE])


def _check_cells(check: Mapping[str, Any]) -> Sequence[str]:
    verdict = "failed" if check["failed"] else check["note"] or "passed"
    return (check["name"], _number(check["error"], ".1e"), f"{check['tolerance']:.0e}", verdict)


def _time_cells(row: Mapping[str, Any], floor: float | None, steps: int) -> Sequence[str]:
    measured, activity = row["measurement"], row["activity"]
    median, best = measured["p50"], min(measured["times"])
    times = f"{median * 1e3:.3f} ({best * 1e3:.3f})" if math.isfinite(median) else measured["note"] or "did not run"
    seen = ("–", "–") if activity is None else (f"{activity['launches'] / steps:.1f}", f"{activity['gaps'] / steps * 1e3:.3f}")
    return (measured["name"], times, "–" if not floor else _number(median / floor, ".2f"), *seen)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"
