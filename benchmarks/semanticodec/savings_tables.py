"""What the savings suite found, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musicrt.runtime.measure import markdown_table

Times = Mapping[str, Sequence[float]]
"""Seconds of each repeat, by what ran."""
SHARED_PREFIX = "part before the first context shared by the rows of guidance"
ONE_BATCH = "rows of guidance as one batch"
ONE_CONTEXT = "keys and values once per window"
ONE_SCHEDULE = "time embeddings once per schedule"
FOLDED = "upsampling of the VAE folded into its convolutions"


@dataclass(frozen=True)
class Batch:
    """An encode of `size` segments together. encode, lstm: seconds of each repeat, for all of them."""

    size: int
    encode: list[float]
    lstm: list[float]
    peak_mb: float


def list_savings(times: Times, steps: int) -> dict[str, float]:
    """Seconds that each saving takes off a decode of one window in so many steps, by name."""
    t = {name: _median(values) for name, values in times.items()}
    single, batch, shared = t["evaluation, one row after the other"], t["evaluation, nothing shared"], t["evaluation"]
    return {
        ONE_CONTEXT: steps * t["conditioning of both rows"] - t["conditioning of a window"],
        ONE_BATCH: steps * (single - batch),
        SHARED_PREFIX: steps * (batch - shared),
        ONE_SCHEDULE: steps * t["one timestep"] - t["all timesteps"],
        FOLDED: t["VAE, upsampling not folded"] - t["VAE"],
    }


def decode_seconds(times: Times, steps: int) -> float:
    """A decode of one window with all savings, put together from its stages."""
    t = {name: _median(values) for name, values in times.items()}
    return t["conditioning of a window"] + t["all timesteps"] + steps * t["evaluation"] + t["VAE"] + t["vocoder"]


def render(times: Times, lstms: Times, batches: Sequence[Batch], steps: int, clip: float) -> str:
    """The tables of the suite."""
    savings, now = list_savings(times, steps), decode_seconds(times, steps)
    before = now + sum(savings.values())
    rows = [[name, f"{seconds:.2f}", f"{seconds / before:.1%}"] for name, seconds in savings.items()]
    rows += [["all of them", f"{before - now:.2f}", f"{(before - now) / before:.1%}"]]
    trim = _median(times["vocoder"]) - _median(times["vocoder of the clip"])
    sections = [
        f"## Decode of one window in {steps} steps: {before:.2f} s without, {now:.2f} s with the savings",
        markdown_table(("saving", "s", "share"), rows),
        f"A clip of {clip:g} s saves {trim:.2f} s more by stopping the vocoder at its end, {trim / before:.1%} of the same.",
        "## What ran",
        markdown_table(("call", "median ms"), [[name, f"{_median(values) * 1e3:.2f}"] for name, values in times.items()]),
        "## LSTM and projection of one segment",
        markdown_table(("runs in", "median ms"), [[name, f"{_median(values) * 1e3:.0f}"] for name, values in lstms.items()]),
        "eager is torch's own LSTM; torch-cpu runs the stage of the bundle, whose steps are products of torch.",
    ]
    if batches:
        first = _median(batches[0].encode) / batches[0].size
        sections += [
            "## Encode by segments in a batch",
            markdown_table(
                ("segments", "s for each", "of that the LSTM", f"speed-up over {batches[0].size}", "peak MB"),
                [_row(b, first) for b in batches],
            ),
        ]
    return "\n\n".join(sections)


def _row(batch: Batch, first: float) -> list[str]:
    encode, lstm = (_median(times) / batch.size for times in (batch.encode, batch.lstm))
    return [str(batch.size), f"{encode:.3f}", f"{lstm:.3f}", f"{first / encode:.2f}", f"{batch.peak_mb:.0f}"]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
