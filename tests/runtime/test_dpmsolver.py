"""DPM-Solver++(2M) where the exact answer is known: it is of second order, near a long DDIM after few steps, and called like DDIM."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.loops import ddim, dpmsolver
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.diffusion import Evaluate, Float, Schedule, alphas_cumprod
from musicrt.runtime.loops.dpmsolver import DpmSolverSchedule, half_log_snr, log_snr_timesteps
from tests.conftest import refused

Exact = NDArray[np.float64]
ALPHAS = alphas_cumprod(0.0015, 0.0195, 1000)
SIZE = 2000


class Mixtures:
    """SIZE scalars, each distributed as its own mixture of three Gaussians with mean 0 and variance 1; the ideal network for them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.mean, self.std = rng.standard_normal((3, SIZE)), 0.3 * np.exp(0.3 * rng.standard_normal((3, SIZE)))
        self.weight = rng.random((3, SIZE)) + 0.2
        self.weight /= self.weight.sum(axis=0)
        self.mean -= (self.weight * self.mean).sum(axis=0)
        scale = np.sqrt((self.weight * (self.std**2 + self.mean**2)).sum(axis=0))
        self.mean, self.std = self.mean / scale, self.std / scale
        self.start = rng.standard_normal(SIZE).astype(np.float32)

    def clean(self, x: Exact, a: float) -> Exact:
        """Mean of the clean signal, given a noisy one."""
        variance = a * self.std**2 + 1 - a
        surprise = x - math.sqrt(a) * self.mean
        density = self.weight * np.exp(-0.5 * surprise**2 / variance) / np.sqrt(variance)
        return np.asarray((density * (self.mean + math.sqrt(a) * self.std**2 / variance * surprise)).sum(axis=0) / density.sum(axis=0))

    def transport(self, x: Exact, a: float, b: float) -> Exact:
        """The solution of the diffusion ODE from level `a` to `b`: on scalars it keeps the quantile."""
        wanted = self._quantile(x, a)
        low, high = np.full(SIZE, -9.0), np.full(SIZE, 9.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self._quantile(middle, b) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2)

    def _quantile(self, x: Exact, a: float) -> Exact:
        return np.asarray((self.weight * ndtr((x - math.sqrt(a) * self.mean) / np.sqrt(a * self.std**2 + 1 - a))).sum(axis=0))

    def network(self, schedule: Schedule) -> Evaluate:
        """v of the ideal network."""

        def evaluate(index: int, x: Float, out: Float) -> None:
            a, noisy = float(ALPHAS[schedule.timesteps[index]]), x.astype(np.float64)
            out[0] = (math.sqrt(a) * noisy - self.clean(noisy, a)) / math.sqrt(1 - a)

        return evaluate

    def draw(self, k: int) -> Float:
        return self.start if k == 0 else np.zeros_like(self.start)  # without eta, DDIM has no use for noise

    def by_dpmsolver(self, schedule: DpmSolverSchedule) -> Float:
        return dpmsolver.sample(schedule, self.network(schedule), self.draw, lambda: None)

    def by_ddim(self, schedule: DdimSchedule) -> Float:
        return ddim.sample(schedule, self.network(schedule), self.draw, lambda: None)


@pytest.fixture(scope="module")
def mixtures() -> Mixtures:
    return Mixtures()


@pytest.fixture(scope="module")
def long_ddim(mixtures: Mixtures) -> Float:
    return mixtures.by_ddim(DdimSchedule.build(1000, 0, ALPHAS))


def distance(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64)))


# Schedule


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20, 50, 200, 765, 998, 999])
def test_timesteps_are_as_many_as_asked_and_even_in_log_snr(steps: int) -> None:
    schedule = DpmSolverSchedule.build(steps, ALPHAS)
    assert schedule.steps == len(schedule.timesteps) == steps
    assert schedule.timesteps.dtype == np.int64
    assert schedule.timesteps[-1] == 999
    assert steps == 1 or schedule.timesteps[0] == 1
    assert (np.diff(schedule.timesteps) > 0).all()
    if 1 < steps <= 20:
        widths = -np.diff(half_log_snr(ALPHAS)[schedule.timesteps])
        np.testing.assert_allclose(widths, widths.mean(), rtol=0.35)  # rounding to whole timesteps, coarse near the clean end


def test_schedule_of_ten_steps() -> None:
    assert log_snr_timesteps(10, ALPHAS).tolist() == [1, 9, 44, 153, 342, 532, 686, 809, 911, 999]


@pytest.mark.parametrize("steps", [0, -1, 1000, 1.0, True, "2", None])
def test_impossible_step_counts_are_refused(steps: Any) -> None:
    with refused(InputError, repr(steps), "whole number from 1 to 999"):
        DpmSolverSchedule.build(steps, ALPHAS)


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 999])
def test_coefficients_keep_a_signal_that_is_known(steps: int) -> None:
    """With right predictions of a clean signal, every step lands on its mix with the same noise at the next level."""
    schedule = DpmSolverSchedule.build(steps, ALPHAS)
    signal, noise = schedule.sqrt_a_t.astype(np.float64), schedule.sqrt_one_minus_a_t.astype(np.float64)
    keep, clean = schedule.keep.astype(np.float64), schedule.current.astype(np.float64) + schedule.previous
    np.testing.assert_allclose(signal**2 + noise**2, 1, atol=2e-7)
    np.testing.assert_allclose(keep[1:] * noise[1:], noise[:-1], rtol=3e-7)
    np.testing.assert_allclose(keep[1:] * signal[1:] + clean[1:], signal[:-1], atol=3e-7)
    assert (schedule.keep[0], schedule.current[0], schedule.previous[0], schedule.previous[-1]) == (0, 1, 0, 0)


# Accuracy


def test_error_falls_to_a_quarter_when_steps_double(mixtures: Mixtures) -> None:
    first, last = float(ALPHAS[999]), float(ALPHAS[1])
    exact = mixtures.clean(mixtures.transport(mixtures.start.astype(np.float64), first, last), last)
    errors = [distance(mixtures.by_dpmsolver(DpmSolverSchedule.build(steps, ALPHAS)), exact) for steps in (10, 20, 40, 80)]
    np.testing.assert_allclose(errors, [3.3e-2, 8.8e-3, 2.3e-3, 5.9e-4], rtol=0.05)
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    np.testing.assert_allclose(ratios, 4, atol=0.35)


def test_error_of_ddim_falls_to_a_half_when_steps_double(mixtures: Mixtures) -> None:
    errors = []
    for steps in (10, 20, 40):
        schedule = DdimSchedule.build(steps, 0, ALPHAS)
        exact = mixtures.transport(mixtures.start.astype(np.float64), float(schedule.a_t[-1]), float(schedule.a_prev[0]))
        errors.append(distance(mixtures.by_ddim(schedule), exact))
    np.testing.assert_allclose(errors, [0.145, 0.076, 0.040], rtol=0.05)
    np.testing.assert_allclose([coarse / fine for coarse, fine in itertools.pairwise(errors)], 1.9, atol=0.05)


@pytest.mark.parametrize(("steps", "most"), [(10, 0.04), (15, 0.02), (20, 0.012)])
def test_few_steps_come_near_a_long_ddim(mixtures: Mixtures, long_ddim: Float, steps: int, most: float) -> None:
    even_in_time = np.rint(np.linspace(1, 999, steps)).astype(np.int64)
    error = distance(mixtures.by_dpmsolver(DpmSolverSchedule.build(steps, ALPHAS)), long_ddim)
    assert error < most
    assert error < 0.2 * distance(mixtures.by_dpmsolver(DpmSolverSchedule.at(even_in_time, ALPHAS)), long_ddim)
    assert error < 0.25 * distance(mixtures.by_ddim(DdimSchedule.build(steps, 0, ALPHAS)), long_ddim)


# Loop


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_follows_the_published_algorithm(steps: int) -> None:
    """Algorithm 2 of the paper in float64, with guidance."""
    schedule = DpmSolverSchedule.build(steps, ALPHAS)
    start = np.random.default_rng(0).standard_normal((2, 3, 8), np.float32)

    def network(index: int, x: NDArray[Any], branch: int) -> Any:
        return np.tanh(x * (1 + index)) - (0.3 + 0.2 * branch) * x

    def evaluate(index: int, x: Float, out: Float) -> None:
        for branch, row in enumerate(out):
            row[:] = network(index, x, branch)

    a = ALPHAS[schedule.timesteps].astype(np.float64)
    lam, expected, predictions, widths = np.log(np.sqrt(a / (1 - a))), start.astype(np.float64), [], []
    for index in reversed(range(steps)):
        v = network(index, expected, 1) + 2.5 * (network(index, expected, 0) - network(index, expected, 1))
        predictions.append(np.sqrt(a[index]) * expected - np.sqrt(1 - a[index]) * v)
        if index == 0:
            expected = predictions[-1]
            break
        widths.append(lam[index - 1] - lam[index])
        target = predictions[-1]
        if len(widths) > 1:
            ratio = widths[-2] / widths[-1]
            target = (1 + 1 / (2 * ratio)) * predictions[-1] - 1 / (2 * ratio) * predictions[-2]
        shrink = np.sqrt((1 - a[index - 1]) / (1 - a[index]))
        expected = shrink * expected - np.sqrt(a[index - 1]) * np.expm1(-widths[-1]) * target
    result = dpmsolver.sample(schedule, evaluate, lambda _: start, lambda: None, 2.5)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


def test_calls_come_in_order_and_on_the_same_buffers() -> None:
    log: list[str] = []
    buffers: set[tuple[int, int]] = set()
    start = np.ones((1, 2, 4), np.float32)

    def draw(k: int) -> Float:
        log.append(f"draw {k}")
        return start

    def evaluate(index: int, x: Float, out: Float) -> None:
        log.append(f"evaluate {index}")
        buffers.add((x.ctypes.data, out.ctypes.data))
        assert not np.shares_memory(x, out)
        out[:] = x

    dpmsolver.sample(DpmSolverSchedule.build(3, ALPHAS), evaluate, draw, lambda: log.append("step"), guidance=2.0)
    assert log == ["draw 0", "evaluate 2", "step", "evaluate 1", "step", "evaluate 0", "step"]
    assert len(buffers) == 1
    assert (start == 1).all()


def test_cancelling_between_steps_stops_the_loop() -> None:
    evaluated: list[int] = []

    def evaluate(index: int, _: Float, out: Float) -> None:
        evaluated.append(index)
        out[:] = 0.0

    def on_step() -> None:
        raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        dpmsolver.sample(DpmSolverSchedule.build(5, ALPHAS), evaluate, lambda _: np.ones((1, 4), np.float32), on_step)
    assert evaluated == [4]
