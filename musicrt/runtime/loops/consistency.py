"""Consistency sampling (SPEC of Music2Latent, section 8; Song et al. 2023, arXiv:2303.01469).

All arithmetic on the noisy signal is float32; the schedule is computed in Python floats. Noise is an input, so every backend
can be compared number by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.denoiser import Loop

Float = NDArray[np.float32]
MOST_STEPS = 1000


@dataclass(frozen=True)
class ConsistencySchedule:
    """The noise levels of an n-step decode: `sigmas` of the n evaluations, then sigma_min; and what follows from them."""

    sigmas: tuple[float, ...]
    sigma_data: float

    @classmethod
    def build(cls, steps: int, *, sigma_min: float, sigma_max: float, sigma_data: float, rho: float) -> ConsistencySchedule:
        """Karras' schedule over steps + 1 levels. Raises InputError for fewer than one step."""
        if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MOST_STEPS:
            raise InputError(f"got {steps!r} denoising steps, expected a whole number from 1 to {MOST_STEPS}")
        steps = int(steps)
        low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
        return cls(tuple((low + i / steps * (high - low)) ** rho for i in range(steps, -1, -1)), sigma_data)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def sigma_min(self) -> float:
        return self.sigmas[-1]

    def coefficients(self, step: int) -> tuple[float, float, float]:
        """c_skip, c_out, c_in of one evaluation (SPEC section 7.2)."""
        return precondition(self.sigmas[step], self.sigma_min, self.sigma_data)

    def noise_scale(self, step: int) -> float:
        """Weight of the noise that is added again after a step."""
        return math.sqrt(max(self.sigmas[step + 1] ** 2 - self.sigma_min**2, 0.0))


def precondition(sigma: float, sigma_min: float, sigma_data: float) -> tuple[float, float, float]:
    """c_skip, c_out, c_in: what makes the network the identity at sigma_min."""
    data2 = sigma_data**2
    c_skip = data2 / ((sigma - sigma_min) ** 2 + data2)
    c_out = sigma_data * (sigma - sigma_min) / math.sqrt(data2 + sigma**2)
    return c_skip, c_out, 1.0 / math.sqrt(sigma**2 + data2)


def scale_input(x: Float, c_in: float, out: Float) -> None:
    """What the network sees of a noisy signal."""
    np.multiply(x, np.float32(c_in), out=out)


def combine(x: Float, output: Float, c_skip: float, c_out: float) -> Float:
    """The network's estimate of the clean signal. Overwrites `output`."""
    output *= np.float32(c_out)
    output += np.float32(c_skip) * x
    return output


def renoise(clean: Float, noise: Float, scale: float, out: Float) -> None:
    """The noisy signal of the next step."""
    np.multiply(noise, np.float32(scale), out=out)
    out += clean


def sample(
    schedule: ConsistencySchedule,
    evaluate: Callable[[int, Float, Float], None],
    draw: Callable[[int], Float],
    on_step: Callable[[], None],
) -> Float:
    """Run the schedule on host arrays; the clean signal of the last step.

    `evaluate(step, x, out)` runs the network on the scaled noisy signal `x` and writes into `out`; both are the same two
    buffers in every step. `draw(i)` gives standard normal noise: 0 the initial one, k that after the k-th step (none after the
    last). `on_step()` is called after each step and may raise `Cancelled`.
    """
    noisy = draw(0) * np.float32(schedule.sigmas[0])
    x, clean = np.empty_like(noisy), np.empty_like(noisy)
    for step in range(schedule.steps):
        if step:
            renoise(clean, draw(step), schedule.noise_scale(step - 1), noisy)
        c_skip, c_out, c_in = schedule.coefficients(step)
        scale_input(noisy, c_in, x)
        evaluate(step, x, clean)
        combine(noisy, clean, c_skip, c_out)
        on_step()
    return clean


def loop(schedule: ConsistencySchedule) -> Loop:
    """The loop of `sample`, for either driver."""
    steps = range(schedule.steps)
    weights = [schedule.coefficients(step) for step in steps]
    rows = [(0.0, 0.0, schedule.sigmas[0]), *((skip, out, schedule.noise_scale(step)) for step, (skip, out, _) in enumerate(weights))]
    inputs = [*(weight[2] for weight in weights), 1.0]  # after the last step no noise is added, and the clean signal is the result
    return Loop(
        solver="consistency",
        positions=steps,
        coefficients=np.array([(*row, scale) for row, scale in zip(rows, inputs, strict=True)], np.float32),
        draws=schedule.steps,
        branches=None,
        run=partial(sample, schedule),
    )
