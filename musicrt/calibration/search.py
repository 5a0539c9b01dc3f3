"""Greedy un-quantising: the most sensitive layers go back to float32, a few at a time, until the gates hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from musicrt.calibration.lowering import LoweredStage
from musicrt.calibration.quality import missed
from musicrt.runtime.precision import Gate

OnRound = Callable[[str, int, int], None]
_SHARE = 8
"""In each round, one of so many layers goes back."""
_LEAST = 0.5
"""The share of layers that must stay lowered: with fewer, there is little left to win."""


@dataclass(frozen=True)
class Round:
    """One state of the search: how many layers are lowered, which went back to float32 just before, and what was measured."""

    lowered: int
    kept: tuple[str, ...]
    quality: Mapping[str, float]


def search(
    stages: Mapping[str, LoweredStage],
    gates: Sequence[Gate],
    users: Mapping[str, set[str]],
    measure: Callable[[], dict[str, float]],
    on_round: OnRound,
    most: int | None = None,
) -> list[Round]:
    """Un-quantise until all gates hold, too few layers would be left, or `most` times; the last round is the state that is kept.

    users: the stages that ran in each way through the pipeline. Only those behind a missed gate change: its measure begins with that way.
    """
    total = sum(len(stage.candidates) for stage in stages.values())
    rounds = [Round(_count(stages), (), measure())]
    while (most is None or len(rounds) <= most) and (failed := missed(gates, rounds[-1].quality)):
        room = _count(stages) - math.ceil(_LEAST * total)
        if room < 1:
            break
        ways = {gate.measure.partition(" ")[0] for gate in failed}
        concerned = {name for way in ways for name in users.get(way, stages)} & set(stages)
        for name in sorted(concerned):
            stages[name].find_noise(partial(_say_layer, on_round, name))
        left = [
            (stages[name].noise[layer.name], name, layer.name)
            for name in sorted(concerned)
            for layer in stages[name].lowered
            if layer.name in stages[name].noise
        ]
        if not left:
            break
        worst = sorted(left, reverse=True)[: min(math.ceil(len(left) / _SHARE), room)]
        for name in sorted({stage for _, stage, _ in worst}):
            stages[name].keep([layer for _, stage, layer in worst if stage == name])
        on_round(f"{_count(stages)} of {total} layers lowered", total - _count(stages), total)
        rounds.append(Round(_count(stages), tuple(f"{stage}: {layer}" for _, stage, layer in worst), measure()))
    return rounds


def _say_layer(on_round: OnRound, stage: str, layer: str, done: int, count: int) -> None:
    on_round(f"{stage}: {layer} by itself", done, count)


def _count(stages: Mapping[str, LoweredStage]) -> int:
    return sum(len(stage.lowered) for stage in stages.values())
