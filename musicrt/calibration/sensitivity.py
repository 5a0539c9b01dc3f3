"""Which layers cost most: each, or a few neighbours, are lowered by themselves, and what that does to the stage's outputs is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from musicrt.calibration.capture import Feeds
from musicrt.calibration.graphs import open_model
from musicrt.calibration.lowerable import LowerableGraph
from musicrt.calibration.ranges import Ranges
from musicrt.runtime.session import Array

OnLayer = Callable[[str, int, int], None]
_MOST = 40
"""Sessions for each stage: where there are more layers, neighbours go together."""


def noise_by_layer(
    graph: LowerableGraph,
    feeds: Feeds,
    ranges: Ranges,
    keep: tuple[str, ...] = (),
    threads: int | None = None,
    on_layer: OnLayer | None = None,
) -> dict[str, float]:
    """Of each layer that may be lowered: power of the noise over that of the signal, of the output that suffers most.

    One session and one run for each, the rest as it was, but of no more than `_MOST` groups; layers of a group share its noise. Errors
    add up nearly as independent ones do, so that those of several layers can be judged by the sum; the search measures what does not.
    """
    names = [tensor.name for tensor in graph.stage.outputs]
    expected = graph.run(feeds, names, threads)
    layers = [layer for layer in graph.layers if not layer.is_in(keep)]
    found: dict[str, float] = {}
    size = max(math.ceil(len(layers) / _MOST), 1)
    for start in range(0, len(layers), size):
        group = layers[start : start + size]
        if on_layer:
            on_layer(group[0].name, start, len(layers))
        with open_model(graph.stage, graph.lower(group, ranges), graph.folder, threads) as session:
            produced = session.run(graph.take(feeds))
        found |= dict.fromkeys((layer.name for layer in group), noise_of(produced, expected) / len(group))
    return found


def noise_of(produced: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Power of the noise over that of the signal, of the worst output; of whole numbers the share that differs."""
    return max(_noise(produced[name], want) for name, want in expected.items())


def _noise(value: Array, want: Array) -> float:
    if np.issubdtype(want.dtype, np.integer):
        return float(np.mean(value != want))
    if not np.isfinite(value).all():
        return math.inf
    wanted = want.astype(np.float64)
    return float(np.sum((value - wanted) ** 2) / max(float(np.sum(wanted**2)), 1e-30))
