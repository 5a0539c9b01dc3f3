"""What samplers of a discrete-time diffusion model share: noise levels, guidance and the loop (SPEC of SemantiCodec, section 3.3).

At timestep t a noisy signal is `x = sqrt(a) clean + sqrt(1 - a) noise` with `a = alphas[t]`, and the network predicts
`v = sqrt(a) noise - sqrt(1 - a) clean` (Salimans & Ho 2022, arXiv:2202.00512). A schedule lists the positions that a sampler visits, the
smallest timestep first; the loop runs from the last position to position 0. All arithmetic on signals is float32. Noise is an input, so
every backend can be compared number by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

Float = NDArray[np.float32]
_MOST_GUIDANCE = 1e6
Evaluate = Callable[[int, Float, Float], None]
"""`evaluate(index, x, out)`: runs the network at position `index` on the noisy `x` [batch, ...] and writes v [branches, batch, ...] into
`out`; row 0 is conditional, row 1, if there is one, unconditional. Both are the same two buffers in every step of a run."""
Draw = Callable[[int], Float]
"""`draw(k)`: standard normal noise [batch, ...]: 0 the initial one, k that of the k-th step of the loop."""
OnStep = Callable[[], None]
"""Called after each step; may raise `Cancelled`."""


class Schedule(Protocol):
    """The positions of a sampler: `timesteps` int64 [steps] for the network, rising, and the weights of clean signal and noise there."""

    @property
    def timesteps(self) -> NDArray[np.int64]: ...

    @property
    def sqrt_a_t(self) -> Float: ...

    @property
    def sqrt_one_minus_a_t(self) -> Float: ...

    @property
    def steps(self) -> int: ...


def alphas_cumprod(linear_start: float, linear_end: float, timesteps: int) -> Float:
    """Share of the clean signal's power at each timestep, float32 [timesteps], falling: products of 1 - beta.

    The roots of the betas are evenly spaced. Computed in float64 and rounded, which gives the values of the official checkpoints.
    """
    betas = np.linspace(math.sqrt(linear_start), math.sqrt(linear_end), timesteps, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas).astype(np.float32)


def check_steps(steps: int, most: int) -> int:
    """A number of steps from 1 to `most`. Raises InputError."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most:
        raise InputError(f"got {steps!r} sampling steps, expected a whole number from 1 to {most}")
    return int(steps)


def check_guidance(guidance: object) -> float:
    """A finite guidance scale. Raises InputError."""
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not abs(float(guidance)) < _MOST_GUIDANCE:
        raise InputError(f"got guidance {guidance!r}, expected a finite number below {_MOST_GUIDANCE:.0e}; 1.0 is no guidance")
    return float(guidance)


def branches(guidance: object) -> int:
    """How many rows of v a guidance scale needs: one for 1.0, which is no guidance, else two. Raises InputError for an absurd one."""
    return 1 if check_guidance(guidance) == 1 else 2


def guide(v: Float, scale: float) -> Float:
    """Classifier-free guidance: v [branches, batch, ...] -> [batch, ...] = v_u + scale (v_c - v_u), in row 0 of `v`; one row: itself."""
    combined: Float = v[0]
    if len(v) == 2:
        combined -= v[1]
        combined *= np.float32(scale)
        combined += v[1]
    return combined


def predict_clean(schedule: Schedule, index: int, x: Float, v: Float) -> Float:
    """The clean signal that v means for the noisy `x` at a position; a new array."""
    clean: Float = schedule.sqrt_a_t[index] * x
    clean -= schedule.sqrt_one_minus_a_t[index] * v
    return clean


def denoise(
    steps: int, advance: Callable[[int, Float, Float], None], evaluate: Evaluate, draw: Draw, on_step: OnStep, guidance: float
) -> Float:
    """Run a sampler from its last position to position 0; the signal after that, float32 [batch, ...].

    `advance(index, x, v)` is the sampler's step: `x` becomes the signal of the next position; it may overwrite the guided `v`.
    Raises InputError for a guidance that is not finite or absurd, and what the callables raise.
    """
    rows = branches(guidance)
    x = np.array(draw(0), np.float32, order="C")  # a copy: the noise stays the caller's
    v = np.empty((rows, *x.shape), np.float32)
    for index in reversed(range(steps)):
        evaluate(index, x, v)
        advance(index, x, guide(v, guidance))
        on_step()
    return x
