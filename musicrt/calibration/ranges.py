"""Ranges of activations, from the feeds that were captured: what the 256 steps of an 8-bit integer are laid over."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from musicrt.calibration.capture import Feeds
from musicrt.calibration.graphs import StageGraph
from musicrt.runtime.session import Array

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
Ranges = dict[str, tuple[float, float]]

_AT_ONCE = 32  # values that are held of a run
_BINS = 2048
_LEVELS = 128  # that entropy tries to get by with
_PERCENTILE = 99.999


def find_ranges(
    graph: StageGraph, feeds: Sequence[Feeds], values: Sequence[str], method: Method = "minmax", threads: int | None = None
) -> Ranges:
    """The lowest and highest number of each value that is told apart; zero is between them. Memory: that of a run, and of some values.

    minmax: all that was seen. percentile: all but a hundred-thousandth at either end. entropy: where the distribution loses least of
    its information; slow. On music the largest values count most: cutting them off costs more than finer steps for the others gain.
    """
    found: Ranges = {}
    for start in range(0, len(values), _AT_ONCE):
        probe = graph.probe(values[start : start + _AT_ONCE], threads)
        found |= (
            _extremes(probe(feed) for feed in feeds) if method == "minmax" else _from_histograms((probe(feed) for feed in feeds), method)
        )
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in found.items()}


def _extremes(runs: Iterable[Mapping[str, Array]]) -> Ranges:
    found: Ranges = {}
    for run in runs:
        for name, array in run.items():
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


def _from_histograms(runs: Iterable[Mapping[str, Array]], method: Method) -> Ranges:
    collector = HistogramCollector(
        method=method, symmetric=False, num_bins=_BINS, num_quantized_bins=_LEVELS, percentile=_PERCENTILE, scenario="same"
    )
    with contextlib.redirect_stdout(io.StringIO()):  # where it reports its progress
        for run in runs:
            collector.collect({name: [np.asarray(array, np.float32)] for name, array in run.items()})
        return {name: (float(low), float(high)) for name, (low, high, *_) in collector.compute_collection_result().items()}
