"""Pictures of a calibration, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.calibration.metrics import magnitudes
from musicrt.runtime.files import new_file

SIZE, HOP, TOP = 2048, 512, 8000.0


def pictures_obstacle() -> str | None:
    """Why no pictures can be drawn; None if they can."""
    return None if importlib.util.find_spec("matplotlib") else "matplotlib is not installed (pip install 'musicrt[bench]')"


def draw_spectrograms(path: Path, sounds: Mapping[str, NDArray[np.float32]], rate: int, title: str) -> None:
    """A PNG of the levels from -80 dB to 0 up to 8 kHz. sounds: mono, by what is written above them. Raises OutputError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 2.2 * len(sounds)), dpi=90, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, audio) in zip(axes, sounds.items(), strict=True):
        levels = 20.0 * np.log10(np.maximum(magnitudes(audio, SIZE, HOP), 1e-5))
        extent = (0.0, len(audio) / rate, 0.0, rate / 2)
        axis.imshow(levels, origin="lower", aspect="auto", extent=extent, vmin=-80.0, vmax=0.0, cmap="magma", interpolation="nearest")
        axis.set(title=name, ylabel="Hz", ylim=(0.0, min(TOP, rate / 2)))
    axes[-1].set_xlabel("s")
    _save(path, figure)


def draw_bars(path: Path, values: Mapping[str, float], marked: Sequence[str], label: str, title: str) -> None:
    """A PNG of one bar for each name; those that are `marked` in another colour. Raises OutputError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, max(2.0, 0.17 * len(values) + 1.0)), dpi=90, layout="constrained")
    axis = figure.subplots()
    colours = ["tab:orange" if name in marked else "tab:blue" for name in values]
    axis.barh(range(len(values)), list(values.values()), color=colours)
    axis.set_yticks(range(len(values)), list(values), fontsize=6)
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)
    _save(path, figure)


def _save(path: Path, figure: Any) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")
