"""Pictures of a benchmark, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicrt.runtime.bench.contenders import names_of
from musicrt.runtime.bench.report import Report
from musicrt.runtime.files import new_file


def charts_obstacle() -> str | None:
    """Why nothing can be drawn; None if it can."""
    return None if importlib.util.find_spec("matplotlib") else "matplotlib is not installed (pip install 'musicrt[bench]')"


def draw_report(prefix: Path, report: Report) -> list[Path]:
    """PREFIX-times.png, PREFIX-roofline.png and PREFIX-throughput.png, those of which something was measured. Raises OutputError."""
    ways = names_of(list(dict.fromkeys(row.contender for row in report.rows)))
    labels = dict(zip(dict.fromkeys(row.contender for row in report.rows), ways, strict=True))
    things = list(dict.fromkeys(row.measurement.name for row in report.rows))
    times = {(labels[row.contender], row.measurement.name): row.measurement.p50 for row in report.rows}
    drawn = [_beside(prefix, "times")]
    draw_bars(drawn[0], things, {way: [times.get((way, thing), 0.0) for thing in things] for way in ways}, log=True)
    points = {
        label: [(work.gflop * 1e9 / work.weights, roof.gflops) for work, roof in _points(report, one) if work.weights and work.gflop]
        for one, label in labels.items()
    }
    if any(points.values()):
        drawn.append(_beside(prefix, "roofline"))
        _draw_roofline(drawn[-1], points, report.peaks)
    if report.loads:
        drawn.append(_beside(prefix, "throughput"))
        _draw_throughput(drawn[-1], report, labels)
    return drawn


def draw_bars(path: Path, groups: Sequence[str], seconds: Mapping[str, Sequence[float]], log: bool = False) -> None:
    """A PNG with a group of bars for each task and a bar for each contender. Raises OutputError."""
    figure, axes = _figure(max(8.0, 1.1 * len(groups)))
    width = 0.8 / len(seconds)
    for index, (name, values) in enumerate(seconds.items()):
        places = [group + (index - (len(seconds) - 1) / 2) * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.3g", fontsize=7, rotation=90 if log else 0, padding=2)
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0, ha="right" if len(groups) > 4 else "center")
    axes.set_ylabel("median seconds")
    if log:
        axes.set_yscale("log")
        axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)
    _save(path, figure)


def _draw_roofline(path: Path, points: Mapping[str, Sequence[tuple[float, float]]], peaks: Mapping[str, float]) -> None:
    """Achieved rates over operations for each byte of weights, under the roofs of the machine."""
    figure, axes = _figure(8.0)
    reached = [point[0] for ones in points.values() for point in ones]
    ends = min(*reached, 1.0) / 2, max(*reached, 1.0) * 2
    for name in ("float32", "bfloat16"):
        if name in peaks:
            ridge = min(max(peaks[name] / peaks["copy"], ends[0]), ends[1])
            corners = [ends[0], ridge, ends[1]]
            axes.plot(corners, [min(peaks[name], x * peaks["copy"]) for x in corners], "--", color="grey", linewidth=1)
            axes.annotate(f"{name}, {peaks[name]:.0f} GFLOP/s", (ends[1], peaks[name]), ha="right", va="bottom", fontsize=7)
    for name, ones in points.items():
        axes.scatter(*zip(*ones, strict=True), s=16, label=name) if ones else None
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte of weights", ylabel="GFLOP/s")
    axes.legend(frameon=False, fontsize=8)
    _save(path, figure)


def _draw_throughput(path: Path, report: Report, labels: Mapping[Any, str]) -> None:
    figure, axes = _figure(8.0)
    for one, loads in report.loads.items():
        for part, by in dict.fromkeys((load.part, load.by) for load in loads):
            series = sorted((load.count, load.throughput) for load in loads if (load.part, load.by) == (part, by))
            axes.plot(*zip(*series, strict=True), "o-" if by == "batch" else "s--", label=f"{labels.get(one, one.name)}: {part}, {by}")
    axes.set(xlabel="signals of a call, or threads that call", ylabel="seconds of audio in a second", ylim=(0.0, None))
    axes.legend(frameon=False, fontsize=7)
    _save(path, figure)


def _points(report: Report, contender: Any) -> list[tuple[Any, Any]]:
    """Work and roof of every stage of a contender."""
    rows = [row for row in report.rows if row.contender == contender]
    return [(report.work_of(row), roof) for row in rows if (roof := report.roof(row)) is not None]


def _figure(width: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _beside(prefix: Path, name: str) -> Path:
    return prefix.with_name(f"{prefix.name}-{name}.png")


def _save(path: Path, figure: Any) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")
