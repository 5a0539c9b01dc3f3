"""Bar charts, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import say
from musicrt.runtime.bench import charts


def draw_bars(path: Path, groups: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> None:
    """A PNG with a group of bars for each task and a bar for each contender. Raises OutputError."""
    if reason := charts.charts_obstacle():
        say(f"{path.name} was not drawn: {reason}")
    else:
        charts.draw_bars(path, groups, seconds)
