"""The arithmetic of the samplers of signals as nodes, in the order of operations of `musicrt.runtime.loops`.

All get `noise` float32 [draws, batch, ...], in the order of the draws, and give `signal` float32 [batch, ...].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.whole_loop.compose import INDEX, Carried, Nodes, Sampler
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.flow import SIGMA, EulerSchedule

Float = NDArray[np.float32]
Tables = Mapping[str, Float]
"""By inputs of the network: float32 [steps, batch, ...] in the order of the loop."""
SIGNAL = "signal"


def write_consistency(schedule: ConsistencySchedule, tables: Tables) -> Sampler:
    """Of a network `x` -> `output`. The noisy signal of the first step is noise on nothing."""
    begin, before, behind = Nodes("begin"), _told(tables), Nodes("behind")
    coefficients = np.array([schedule.coefficients(step) for step in range(schedule.steps)], np.float32)
    scales = np.array([schedule.sigmas[0], *(schedule.noise_scale(step) for step in range(schedule.steps - 1))], np.float32)
    nothing = begin.add("Mul", _draw(begin, begin.constant(0, np.int64)), begin.constant(0.0))
    fresh = before.add("Mul", before.add("Gather", "noise", INDEX, axis=0), before.row(scales))
    noisy = before.add("Add", fresh, "clean")
    before.add("Mul", noisy, before.row(coefficients[:, 2]), name="x")
    estimate = behind.add("Mul", "output", behind.row(coefficients[:, 1]))
    following = behind.add("Add", estimate, behind.add("Mul", noisy, behind.row(coefficients[:, 0])))
    return Sampler(schedule.steps, begin, before, behind, Nodes("end"), [Carried("clean", nothing, following, SIGNAL)])


def write_ddim(schedule: DdimSchedule, tables: Tables, guidance: float) -> Sampler:
    """Of a network `x` -> `v`, with two rows unless guidance is 1. `tables` begin with the last position, as the loop does."""
    begin, before, behind = Nodes("begin"), _told(tables), Nodes("behind")

    def at(values: Float) -> str:
        return behind.row(values[::-1])

    first = _draw(begin, begin.constant(0, np.int64))
    v = _guide(behind, "v", guidance)
    clean = behind.add("Sub", behind.add("Mul", "x", at(schedule.sqrt_a_t)), behind.add("Mul", v, at(schedule.sqrt_one_minus_a_t)))
    predicted = behind.add("Mul", v, at(schedule.sqrt_a_t))
    predicted = behind.add("Add", predicted, behind.add("Mul", "x", at(schedule.sqrt_one_minus_a_t)))
    predicted = behind.add("Mul", predicted, at(schedule.direction))
    following = behind.add("Add", behind.add("Mul", clean, at(schedule.sqrt_a_prev)), predicted)
    draw = behind.add("Gather", "noise", behind.add("Add", INDEX, behind.constant(1, np.int64)), axis=0)
    following = behind.add("Add", following, behind.add("Mul", draw, at(schedule.sigma)))
    return Sampler(schedule.steps, begin, before, behind, Nodes("end"), [Carried("x", first, following, SIGNAL)])


def write_euler(schedule: EulerSchedule, tables: Tables, guidance: float, known: int) -> Sampler:
    """Of a network `x` -> `velocity`, with two rows where guidance is above 1. known: frames of `known` float32 [batch, 32, n, 32]."""
    begin, before, behind, end = Nodes("begin"), _told(tables), Nodes("behind"), Nodes("end")
    initial = _draw(begin, begin.constant(0, np.int64))
    if known:
        start, stop, axis = (begin.constant([value], np.int64) for value in (0, known, 2))
        rest = begin.constant([np.iinfo(np.int64).max], np.int64)
        noise = begin.add("Slice", initial, start, stop, axis)
        way = before.add("Mul", noise, before.row(1 - (1 - SIGMA) * schedule.times))
        way = before.add("Add", way, before.add("Mul", "known", before.row(schedule.times)))
        before.add("Concat", way, before.add("Slice", "flowing", stop, rest, axis), name="x", axis=2)
        end.add("Concat", "known", end.add("Slice", "flowed", stop, rest, axis), name=SIGNAL, axis=2)
    else:
        before.add("Identity", "flowing", name="x")
        end.add("Identity", "flowed", name=SIGNAL)
    following = behind.add("Add", behind.add("Mul", _guide(behind, "velocity", guidance), behind.row(schedule.sizes)), "x")
    return Sampler(schedule.steps, begin, before, behind, end, [Carried("flowing", initial, following, "flowed")])


def _told(tables: Tables) -> Nodes:
    """The nodes before the network, which begin with what it is told of the step."""
    nodes = Nodes("before")
    for name, table in tables.items():
        nodes.row(table, name=name)
    return nodes


def _draw(nodes: Nodes, index: str) -> str:
    return nodes.add("Gather", "noise", index, axis=0)


def _guide(nodes: Nodes, rows: str, guidance: float) -> str:
    """See `musicrt.runtime.loops.diffusion.guide`."""
    conditional = nodes.add("Gather", rows, nodes.constant(0, np.int64), axis=0)
    if guidance == 1:
        return conditional
    without = nodes.add("Gather", rows, nodes.constant(1, np.int64), axis=0)
    difference = nodes.add("Sub", conditional, without)
    return nodes.add("Add", nodes.add("Mul", difference, nodes.constant(guidance)), without)
