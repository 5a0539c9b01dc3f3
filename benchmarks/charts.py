"""Bar charts, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import say
from musicrt.runtime.files import new_file


def draw_bars(path: Path, groups: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> None:
    """A PNG with a group of bars for each task and a bar for each contender. Raises OutputError."""
    if importlib.util.find_spec("matplotlib") is None:
        say(f"{path.name} was not drawn: matplotlib is not installed (pip install 'musicrt[bench]')")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(seconds)
    for index, (name, values) in enumerate(seconds.items()):
        places = [group + (index - (len(seconds) - 1) / 2) * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.3g", fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("median seconds")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")
