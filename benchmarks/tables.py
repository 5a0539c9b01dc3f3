"""The tables of a contest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.rounds import BASELINES, Results
from musicrt.runtime.measure import markdown_table


def render_contest(results: Results, tasks: Sequence[str], stages: Sequence[str], note: str) -> str:
    """Times, ratios, memory and errors: a row for each task and stage, a column for each contender. `note`: a last paragraph."""
    contenders = list(results)

    def measured(rows: Sequence[str]) -> list[str]:
        return [row for row in rows if any(row in found for found in results.values())]

    def table(rows: Sequence[str], cell: Callable[[str, str], str]) -> str:
        cells = [[row, *(cell(name, row) if row in results[name] else "–" for name in contenders)] for row in rows]
        return markdown_table(("", *contenders), cells)

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    def times(name: str, row: str) -> str:
        return f"{results[name][row].p50 * 1e3:.1f} ({results[name][row].p95 * 1e3:.1f})"

    def speed_table(base: str) -> str:
        return table([row for row in rows if row in results[base]], lambda n, r: f"{results[base][r].p50 / results[n][r].p50:.2f}")

    rows, whole = measured((*tasks, *stages)), measured(tasks)
    sections = ["## Milliseconds, median (95th percentile)", table(rows, times)]
    for base in BASELINES:
        if base in results:
            sections += [f"## Times as fast as {base}", speed_table(base)]
    if whole:
        sections += [
            "## Processing time for each second of audio, s",
            table(whole, lambda n, r: number(results[n][r].real_time_factor, ".3f")),
            "## Peak memory, MB / cold start, s",
            table(whole, lambda n, r: f"{number(results[n][r].peak_mb, '.0f')} / {number(results[n][r].cold_start, '.2f')}"),
        ]
    sections += [
        "## Distance from eager: relative L2, of integers the share that differs",
        table([row for row in rows if row != "noise"], lambda n, r: number(results[n][r].error, ".1e")),
        note,
    ]
    return "\n\n".join(sections)
