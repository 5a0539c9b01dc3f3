"""The tables of a soak."""

from __future__ import annotations

from benchmarks.soak.clients import EXPECTED, KINDS
from benchmarks.soak.judge import SCATTER, SHARE, WARM_UP
from benchmarks.soak.rounds import Findings
from musicrt.runtime.measure import markdown_table

_RULE = (
    f"Each value was taken while nobody asked for anything. The first {WARM_UP:.0%} of the samples are warm-up; growth is that of the line "
    f"through the others, from end to end, and flat is what grows by no more than chance may: {SCATTER:g} standard deviations around the "
    f"line, or {SHARE:.0%} (`benchmarks/soak/judge.py`)."
)


def render(findings: Findings) -> str:
    """Requests by kind and outcome, what was watched, and the faults."""
    outcomes = sorted({outcome for _, outcome in findings.tally.outcomes})
    counts = [
        [
            f"`{kind}`: {' '.join((KINDS[kind].__doc__ or '').split()).rstrip('.').lower()}",
            *(str(findings.tally.outcomes[kind, one]) for one in outcomes),
        ]
        for kind in EXPECTED
    ]
    watched = [
        [name, f"{trend.first:.1f}", f"{trend.last:.1f}", f"{trend.grown:+.2f}", f"{trend.allowed:.2f}", "yes" if trend.is_flat else "NO"]
        for name, trend in findings.trends.items()
    ]
    last = findings.samples[-1]
    return "\n\n".join(
        [
            f"{last.requests} requests in {last.seconds:.0f} s, of which the service had {findings.tally.submitted}, and "
            + ("**all went as it has to be.**" if not findings.faults else "**not all went as it has to be:**"),
            *(["\n".join(f"- {fault}" for fault in findings.faults)] if findings.faults else []),
            "## Requests by kind and outcome",
            markdown_table(("kind", *outcomes), counts),
            "## What the process holds",
            markdown_table(("", "behind the warm-up", "at the end", "growth", "allowed", "flat"), watched),
            _RULE,
        ]
    )
