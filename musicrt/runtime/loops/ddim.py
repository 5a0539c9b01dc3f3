"""DDIM sampling with v-prediction (SPEC of SemantiCodec, section 3.3; Song et al. 2021, arXiv:2010.02502)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.denoiser import Loop, table_of
from musicrt.runtime.loops.diffusion import Draw, Evaluate, Float, OnStep, branches, check_steps, denoise, predict_clean


def uniform_timesteps(steps: int, total: int) -> NDArray[np.int64]:
    """The official timesteps for `steps` asked: every (total // steps)-th, plus 1. Raises InputError: steps outside 1 to `total`.

    As officially there can be more than were asked (31 for 30 of 1000), and the last can be `total`, which no network knows.
    """
    return np.arange(0, total, total // check_steps(steps, total), dtype=np.int64) + 1


@dataclass(frozen=True, eq=False)
class DdimSchedule:
    """Timesteps int64 [n], smallest first, and the coefficients of a step at each of them, float32 [n].

    `a_t` and `a_prev`: share of the clean signal's power before and after the step; `sigma`: weight of fresh noise; `direction`: weight of
    the predicted noise, sqrt(1 - a_prev - sigma^2). n can be more than the steps asked, see `uniform_timesteps`.
    Roots are those of the float32 shares; the official buffers, rounded after the root, differ by 3e-6 of their value at most.
    """

    timesteps: NDArray[np.int64]
    a_t: Float
    a_prev: Float
    sigma: Float
    sqrt_a_t: Float
    sqrt_one_minus_a_t: Float
    sqrt_a_prev: Float
    direction: Float

    @classmethod
    def build(cls, steps: int, eta: float, alphas: Float) -> DdimSchedule:
        """The official schedule on `alphas` float32 [total]; eta 0 is deterministic, 1 (the official default) adds noise in every step.

        Where the official code asks for timestep `total` and fails (3 or 36 steps of 1000, and all above 500), the last one is `total` - 1.
        Raises InputError: steps outside 1 to `total`, eta outside 0 to 1.
        """
        if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
            raise InputError(f"got eta {eta!r}, expected a number from 0 (no noise is added) to 1")
        timesteps = np.minimum(uniform_timesteps(steps, len(alphas)), len(alphas) - 1)
        a_t = alphas[timesteps]
        a_prev = alphas[np.concatenate([[0], timesteps[:-1]])]
        before = a_prev.astype(np.float64)
        inverse = (1 / (1 - a_t)).astype(np.float64)  # rounded to float32 first, as officially
        sigma = (float(eta) * np.sqrt((1 - before) * inverse * (1 - a_t / before))).astype(np.float32)
        return cls(
            timesteps=timesteps,
            a_t=a_t,
            a_prev=a_prev,
            sigma=sigma,
            sqrt_a_t=np.sqrt(a_t),
            sqrt_one_minus_a_t=np.sqrt(1 - a_t),
            sqrt_a_prev=np.sqrt(a_prev),
            direction=np.sqrt(1 - a_prev - sigma**2),
        )

    @property
    def steps(self) -> int:
        """How many evaluations of the network a run takes."""
        return len(self.timesteps)


def step(schedule: DdimSchedule, index: int, x: Float, v: Float, noise: Float) -> Float:
    """One step from position `index`: `x` becomes the signal of the position before. Gives the predicted clean signal; overwrites `v`."""
    clean = predict_clean(schedule, index, x, v)
    v *= schedule.sqrt_a_t[index]
    v += schedule.sqrt_one_minus_a_t[index] * x  # now the predicted noise
    v *= schedule.direction[index]
    np.multiply(clean, schedule.sqrt_a_prev[index], out=x)
    x += v
    x += schedule.sigma[index] * noise
    return clean


def sample(schedule: DdimSchedule, evaluate: Evaluate, draw: Draw, on_step: OnStep, guidance: float = 1.0) -> Float:
    """Run the schedule on host arrays; the signal after the last step, float32 [batch, ...].

    As officially, noise is drawn for every step, also for the last and where eta is 0: `draw(k)` for the k-th step of the loop,
    counted from 1. `evaluate`, `draw` and `on_step` are described in `loops.diffusion`. Raises InputError: guidance is not finite.
    """

    def advance(index: int, x: Float, v: Float) -> None:
        step(schedule, index, x, v, draw(schedule.steps - index))

    return denoise(schedule.steps, advance, evaluate, draw, on_step, guidance)


def loop(schedule: DdimSchedule, guidance: float = 1.0) -> Loop:
    """The loop of `sample`, for either driver. Raises InputError: guidance is not finite."""
    s = schedule
    return Loop(
        solver="ddim",
        positions=range(s.steps)[::-1],
        coefficients=table_of(*(part[::-1] for part in (s.sqrt_a_t, s.sqrt_one_minus_a_t, s.direction, s.sqrt_a_prev, s.sigma))),
        draws=s.steps + 1,
        branches=branches(guidance),
        guidance=guidance,
        run=partial(sample, schedule, guidance=guidance),
    )
