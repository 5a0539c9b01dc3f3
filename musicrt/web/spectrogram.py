"""A picture of what audio files sound like: time to the right, frequency upwards, over the same axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio import probe_audio, stream_audio
from musicrt.runtime.errors import InputError

Float = NDArray[np.float32]
FRAME = 2048
"""Samples that a column is made of."""
_COLUMNS = 1000
_HOP = 512
_RANGE = 90.0  # dB below the loudest


def spectrogram(path: str | Path) -> Float:
    """Levels in dB, 0 for a full-scale sine: float32 [1025, columns], of all channels' mean.

    There are at most about 1000 columns however long the file is, and memory is bounded; an empty file has one, of silence.
    Raises AudioError.
    """
    hop = max(_HOP, probe_audio(path).samples // _COLUMNS)
    frames: list[Float] = []
    waiting = np.zeros(0, np.float32)
    for block in stream_audio(path):
        waiting = np.concatenate([waiting, block.mean(axis=0, dtype=np.float32)])
        while len(waiting) >= max(hop, FRAME):
            frames.append(waiting[:FRAME])
            waiting = waiting[hop:]
    if not frames:
        frames.append(np.pad(waiting, (0, FRAME))[:FRAME])
    window = np.hanning(FRAME)
    levels = np.abs(np.fft.rfft(np.stack(frames) * window)).T * 2 / window.sum()
    decibels: Float = (20 * np.log10(np.maximum(levels, 1e-9))).astype(np.float32)
    return decibels


def draw_spectrograms(files: Mapping[str, str | Path], target: Path) -> None:
    """Write a PNG with the spectrogram of each file below the other, under its title. Raises AudioError, InputError."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(f"pictures need {error.name}, which is not installed: pip install 'musicrt[web]'") from None
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(files)), layout="constrained")  # no pyplot, which serves one thread
    axes = figure.subplots(len(files), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (title, path) in zip(axes, files.items(), strict=True):
        info, levels = probe_audio(path), spectrogram(path)
        extent = (0.0, max(info.samples, 1) / info.sample_rate, 0.0, info.sample_rate / 2000)
        top = max(float(levels.max()), -60.0)
        axis.imshow(levels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - _RANGE, vmax=top)
        axis.set(title=title, ylabel="kHz")
        axis.autoscale()
    axes[-1].set_xlabel("s")
    figure.savefig(target, dpi=90, format="png")
