"""Euler sampling of a flow-matching model (SPEC of MuCodec, section 4.5; Lipman et al. 2023, arXiv:2210.02747).

A signal lies at time t on a straight way from noise, t = 0, to data, t = 1, and the network predicts its velocity. The first frames of
the data may be known: these are put back onto their own way before every step, and are what they were after the last. All arithmetic on
signals is float32. Noise is an input, so every backend can be compared number by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.denoiser import Loop
from musicrt.runtime.loops.diffusion import Draw, Evaluate, OnStep, check_steps, guide

Float = NDArray[np.float32]
MOST_STEPS = 1000
SIGMA = 1e-4
"""Noise that is left at t = 1 on the way of known frames."""
_MOST_GUIDANCE = 1e6


@dataclass(frozen=True, eq=False)
class EulerSchedule:
    """Times of the steps, and how long each is: float32 [n] both, rising from 0.

    The lengths make up for the rounding of the times, which are summed up step by step as officially.
    """

    times: Float
    sizes: Float

    @classmethod
    def build(cls, steps: int) -> EulerSchedule:
        """Equal steps from 0 to 1. Raises InputError: steps outside 1 to 1000."""
        marks = np.linspace(0.0, 1.0, check_steps(steps, MOST_STEPS) + 1).astype(np.float32)
        times, sizes, now = [], [], marks[0]
        for mark in marks[1:]:
            times.append(now)
            sizes.append(mark - now)
            now = now + sizes[-1]
        return cls(np.array(times, np.float32), np.array(sizes, np.float32))

    @property
    def steps(self) -> int:
        """How many evaluations of the network a run takes."""
        return len(self.times)


def branches(guidance: object) -> int:
    """How many rows of velocity a guidance scale needs: two above 1.0; up to that there is no guidance, as officially.

    Raises InputError for anything but a number from 0 on.
    """
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not 0 <= float(guidance) < _MOST_GUIDANCE:
        raise InputError(f"got guidance {guidance!r}, expected a number from 0 to {_MOST_GUIDANCE:.0e}; up to 1.0 there is no guidance")
    return 2 if float(guidance) > 1 else 1


def hold(schedule: EulerSchedule, index: int, x: Float, noise: Float, known: Float) -> None:
    """Put the first frames of `x` [..., frames, bins] where they are before step `index`, on the way from `noise` to `known`.

    known: float32 [..., n, bins], the data of the first n frames.
    """
    frames, time = known.shape[-2], schedule.times[index]
    x[..., :frames, :] = (1 - (1 - SIGMA) * time) * noise[..., :frames, :] + time * known


def step(schedule: EulerSchedule, index: int, x: Float, velocity: Float) -> None:
    """Go step `index` along a velocity: `x` becomes the signal at the next time. Overwrites `velocity`."""
    velocity *= schedule.sizes[index]
    x += velocity


def sample(schedule: EulerSchedule, evaluate: Evaluate, noise: Float, known: Float, on_step: OnStep, guidance: float = 1.0) -> Float:
    """Run the schedule on host arrays; the data, float32 [batch, ..., frames, bins], which begin with `known` [batch, ..., n, bins].

    `evaluate` and `on_step` are described in `loops.diffusion`; row 0 of the velocity is conditional, row 1, where guidance is above
    1.0, unconditional. Raises InputError for an absurd guidance, and what the callables raise.
    """
    x = np.array(noise, np.float32, order="C")  # a copy: the noise stays the caller's
    velocity = np.empty((branches(guidance), *x.shape), np.float32)
    for index in range(schedule.steps):
        hold(schedule, index, x, noise, known)
        evaluate(index, x, velocity)
        step(schedule, index, x, guide(velocity, guidance))
        on_step()
    x[..., : known.shape[-2], :] = known
    return x


def loop(schedule: EulerSchedule, known: Float, guidance: float = 1.0) -> Loop:
    """The loop of `sample`, for either driver. Raises InputError for an absurd guidance."""
    first, last = np.zeros(1, np.float32), np.ones(1, np.float32)  # there is nothing to go before the first step; after the last, no noise

    def run(evaluate: Evaluate, draw: Draw, on_step: OnStep) -> Float:
        return sample(schedule, evaluate, draw(0), known, on_step, guidance)

    noise = (1 - (1 - SIGMA) * schedule.times).astype(np.float32)
    return Loop(
        solver="flow",
        positions=range(schedule.steps),
        coefficients=np.stack(
            [np.concatenate([first, schedule.sizes]), np.concatenate([noise, first]), np.concatenate([schedule.times, last])], axis=1
        ),
        draws=1,
        branches=branches(guidance),
        guidance=guidance,
        run=run,
        known=known,
    )
