"""Spectrograms, one above the other, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.nano.metrics import magnitudes
from benchmarks.results import say
from musicrt.runtime.files import new_file

SIZE, HOP, TOP = 2048, 512, 8000.0


def draw_spectrograms(path: Path, sounds: Mapping[str, NDArray[np.float32]], rate: int, title: str) -> None:
    """A PNG of the levels from -80 dB to 0 up to 8 kHz. sounds: mono, by what is written above them. Raises OutputError."""
    if importlib.util.find_spec("matplotlib") is None:
        say(f"{path.name} was not drawn: matplotlib is not installed (pip install 'musicrt[bench]')")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 2.2 * len(sounds)), dpi=90, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(sounds), 1, sharex=True)
    for axis, (name, audio) in zip(axes, sounds.items(), strict=True):
        levels = 20.0 * np.log10(np.maximum(magnitudes(audio, SIZE, HOP), 1e-5))
        extent = (0.0, len(audio) / rate, 0.0, rate / 2)
        axis.imshow(levels, origin="lower", aspect="auto", extent=extent, vmin=-80.0, vmax=0.0, cmap="magma", interpolation="nearest")
        axis.set(title=name, ylabel="Hz", ylim=(0.0, TOP))
    axes[-1].set_xlabel("s")
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")
