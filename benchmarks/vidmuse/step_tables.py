"""What the step suite found: times, how often as fast as eager, and the share of the memory's bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.rounds import Results
from benchmarks.vidmuse.traffic import COUNTED, Traffic
from benchmarks.vidmuse.workload import Part, Workload
from musicrt.runtime.measure import Measurement, markdown_table
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE
from musicrt.runtime.models.vidmuse.config import WINDOW_SECONDS
from musicrt.runtime.precision import Int8

COPY, READ = "copy", "read"
"""Rows of the machine's memory."""


def render(results: Results, work: Workload, copied: float) -> str:
    """The tables of the suite. copied: bytes that a copy reads and writes; a read reads half of them."""
    names = list(results)
    rows = list(dict.fromkeys(row for found in results.values() for row in found if row not in (COPY, READ)))

    def table(cell: Callable[[Measurement, str], str], columns: Sequence[str] = names) -> str:
        return markdown_table(("", *columns), [[row, *(cell(results[name][row], row) for name in columns)] for row in rows])

    sections = ["## Milliseconds, median (best)", table(lambda m, _: f"{m.p50 * 1e3:.1f} ({min(m.times) * 1e3:.1f})")]
    if (plain := "onnxruntime-cpu") in results and len(names) > 1:
        ours = results[plain]
        sections += [
            f"## Times as fast as {plain} in float32, median (best against best)",
            table(lambda m, row: f"{ours[row].p50 / m.p50:.2f} ({min(ours[row].times) / min(m.times):.2f})"),
        ]
    if "eager" in results:
        eager = results["eager"]
        sections += [
            "## Times as fast as eager, median (best against best)",
            table(lambda m, row: f"{eager[row].p50 / m.p50:.1f} ({min(eager[row].times) / min(m.times):.1f})"),
            "## Distance of the logits from eager's, relative L2",
            table(lambda m, _: "–" if m.error is None else f"{m.error:.1e}", [name for name in names if name != "eager"]),
        ]
    for name in names:
        if COPY in results[name]:
            int8 = work.spec.stage("lm").int8 if name.endswith(":int8") else None
            sections += [f"## {name}: share of the memory's bandwidth", render_shares(results[name], rows, work, copied, int8)]
    sections += ["## A whole window by these steps", _render_windows(results, rows, work), COUNTED]
    return "\n\n".join(sections)


def render_quality(quality: Mapping[str, float]) -> str:
    """What is lost by 8-bit integers where keys and caches are those of music."""
    if not quality:
        return ""
    note = (
        "The keys and caches of the steps above are random numbers, some beyond the ranges that calibration found and cut off there. "
        "This is what calibration measured, step by step along what the float32 network generates for a video that had no part in "
        "finding the ranges."
    )
    cells = [[name, f"{value:.3g}"] for name, value in quality.items()]
    return f"\n\n## What 8-bit integers cost in a generation\n\n{markdown_table(('', 'mean'), cells)}\n\n{note}"


def render_shares(found: Mapping[str, Measurement], rows: Sequence[str], work: Workload, copied: float, int8: Int8 | None = None) -> str:
    """Bytes of each step over its time against those of a copy and of a read: medians against medians, best against best."""
    base = {COPY: copied, READ: copied / 2}
    cells = []
    for row in rows:
        traffic, step = Traffic.of_step(work.config, work.tokens, round(Part.parse(row).size), int8=int8), found[row]
        sizes = [f"{size / 1e6:.0f}" for size in (traffic.weights, traffic.condition, traffic.caches, traffic.total)]
        shares = []
        for kind, size in base.items():
            for pick in (np.median, np.min):
                shares.append(f"{traffic.total / pick(step.times) / (size / pick(found[kind].times)):.2f}")
        cells.append([row, *sizes, f"{traffic.total / step.p50 / 1e9:.1f}", *shares])
    header = ("", "weights MB", "condition MB", "caches MB", "all MB", "GB/s", "of copy", "best", "of read", "best")
    speeds = [
        f"a {kind} {size / found[kind].p50 / 1e9:.1f} GB/s (best {size / min(found[kind].times) / 1e9:.1f})" for kind, size in base.items()
    ]
    note = f"In the same processes, in turn with the steps: {speeds[0]}, bytes read and written; {speeds[1]}."
    return f"{markdown_table(header, cells)}\n\n{note}"


def window_seconds(steps: Mapping[int, float], columns: int) -> float:
    """Seconds of so many steps from an empty cache on, by those that were measured, by length of the cache."""
    known = sorted(steps)
    return float(np.interp(np.arange(columns), known, [steps[size] for size in known]).sum())


def _render_windows(results: Results, rows: Sequence[str], work: Workload) -> str:
    columns = work.pattern.columns(int(WINDOW_SECONDS * FRAME_RATE)) - 1
    cells = []
    for name, found in results.items():
        seconds = window_seconds({round(Part.parse(row).size): found[row].p50 for row in rows}, columns)
        speed = columns / seconds
        cells.append([name, f"{seconds:.1f}", f"{speed:.2f}", f"{speed * work.config.codebooks:.1f}", f"{seconds / WINDOW_SECONDS:.2f}"])
    header = ("contender", f"s for {columns} steps", "steps/s", "tokens/s", "s for each second of music")
    return markdown_table(header, cells)
