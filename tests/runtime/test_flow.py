"""Euler sampling of a flow: times, the formulas, known frames, guidance, calls in order on the same buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.loops.flow import EulerSchedule, Float, branches, hold, sample, step
from tests.conftest import refused

NOTHING = np.zeros((1, 2, 0, 3), np.float32)


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Schedule


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50, 1000])
def test_times_are_sums_of_sizes_and_end_at_one(steps: int) -> None:
    schedule = EulerSchedule.build(steps)
    assert schedule.steps == len(schedule.times) == len(schedule.sizes) == steps
    assert schedule.times.dtype == schedule.sizes.dtype == np.float32
    assert schedule.times[0] == 0
    np.testing.assert_allclose(schedule.times, np.arange(steps) / steps, atol=1e-7)
    np.testing.assert_allclose(schedule.sizes, 1 / steps, atol=2e-7)
    np.testing.assert_array_equal(schedule.times[1:], (schedule.times + schedule.sizes)[:-1])
    assert abs(schedule.times[-1] + schedule.sizes[-1] - 1) < 1e-7


def test_rounding_of_the_times_is_made_up_for() -> None:
    """Summed up without that, a thousand steps of float32 end beside 1."""
    assert abs(np.cumsum(np.full(1000, 0.001, np.float32))[-1] - 1) > 1e-6


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None, "4"])
def test_wrong_steps_are_refused(steps: Any) -> None:
    with refused(InputError, repr(steps), "from 1 to 1000"):
        EulerSchedule.build(steps)


# Guidance


@pytest.mark.parametrize(("guidance", "rows"), [(0, 1), (0.5, 1), (1, 1), (1.0, 1), (1.001, 2), (1.5, 2), (np.float32(3), 2), (999_999, 2)])
def test_guidance_up_to_one_is_none(guidance: Any, rows: int) -> None:
    assert branches(guidance) == rows


@pytest.mark.parametrize("guidance", [-0.1, 1e6, float("nan"), float("inf"), True, None, "2"])
def test_absurd_guidance_is_refused(guidance: Any) -> None:
    with refused(InputError, "guidance", repr(guidance)):
        branches(guidance)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 4.0])
def test_velocity_is_pushed_away_from_the_unconditional(guidance: float) -> None:
    noise, velocity = normal(1, 2, 4, 3), normal(2, 1, 2, 4, 3, seed=1)

    def evaluate(_index: int, _x: Float, out: Float) -> None:
        out[:] = velocity[: len(out)]

    found = sample(EulerSchedule.build(1), evaluate, noise, NOTHING, lambda: None, guidance)
    pushed = velocity[1] + guidance * (velocity[0] - velocity[1]) if guidance > 1 else velocity[0]
    np.testing.assert_allclose(found, noise + pushed, atol=1e-6)


# Steps


def test_constant_velocity_is_followed_exactly() -> None:
    """x(1) = noise + velocity, whatever the steps."""
    noise, velocity = normal(2, 2, 4, 3), normal(2, 2, 4, 3, seed=1)

    def evaluate(_index: int, _x: Float, out: Float) -> None:
        out[0] = velocity

    for steps in (1, 3, 50):
        found = sample(EulerSchedule.build(steps), evaluate, noise, np.zeros((2, 2, 0, 3), np.float32), lambda: None)
        np.testing.assert_allclose(found, noise + velocity, atol=3e-6)


def test_step_is_the_formula_and_in_place() -> None:
    schedule, x, velocity = EulerSchedule.build(4), normal(1, 2, 4, 3), normal(1, 2, 4, 3, seed=1)
    expected = x + np.float32(0.25) * velocity
    step(schedule, 1, x, velocity)
    np.testing.assert_array_equal(x, expected)


def test_decay_converges_to_the_exponential() -> None:
    """dx/dt = -x: Euler gives (1 - 1/n)^n."""

    def evaluate(_index: int, x: Float, out: Float) -> None:
        np.negative(x, out=out[0])

    for steps in (1, 2, 10, 200):
        found = sample(EulerSchedule.build(steps), evaluate, np.ones((1, 1, 1, 1), np.float32), NOTHING[:, :1, :, :1], lambda: None)
        assert abs(found.item() - (1 - 1 / steps) ** steps) < 1e-5


# Known frames


def test_known_frames_lie_on_their_way() -> None:
    schedule, noise, known = EulerSchedule.build(4), normal(1, 2, 5, 3), normal(1, 2, 2, 3, seed=1)
    for index, time in enumerate((0, 0.25, 0.5, 0.75)):
        x = np.zeros_like(noise)
        hold(schedule, index, x, noise, known)
        np.testing.assert_allclose(x[:, :, :2], (1 - 0.9999 * time) * noise[:, :, :2] + time * known, atol=1e-6)
        assert not x[:, :, 2:].any()


def test_known_frames_are_put_back_before_every_step_and_given_in_the_end() -> None:
    noise, known, seen = normal(1, 2, 5, 3), normal(1, 2, 2, 3, seed=1), []

    def evaluate(_index: int, x: Float, out: Float) -> None:
        seen.append(x.copy())
        out[:] = 100

    found = sample(EulerSchedule.build(2), evaluate, noise, known, lambda: None)
    np.testing.assert_array_equal(seen[0], noise)
    np.testing.assert_allclose(seen[1][:, :, :2], (1 - 0.9999 * 0.5) * noise[:, :, :2] + 0.5 * known, atol=1e-6)
    np.testing.assert_allclose(seen[1][:, :, 2:], noise[:, :, 2:] + 50, atol=1e-4)
    np.testing.assert_array_equal(found[:, :, :2], known)
    np.testing.assert_allclose(found[:, :, 2:], noise[:, :, 2:] + 100, atol=1e-4)


# The loop


def test_network_gets_the_same_buffers_in_every_step() -> None:
    noise, calls = normal(2, 2, 4, 3), []
    kept = noise.copy()

    def evaluate(index: int, x: Float, out: Float) -> None:
        calls.append((index, id(x), id(out), x.flags.c_contiguous, out.shape))
        out[:] = 1

    done: list[int] = []
    sample(EulerSchedule.build(3), evaluate, noise, np.zeros((2, 2, 0, 3), np.float32), lambda: done.append(len(calls)), 2.0)
    assert [call[0] for call in calls] == [0, 1, 2]
    assert done == [1, 2, 3]
    assert {call[1:] for call in calls} == {(*calls[0][1:3], True, (2, 2, 2, 4, 3))}
    np.testing.assert_array_equal(noise, kept)


def test_cancelling_stops_between_steps() -> None:
    calls: list[int] = []

    def evaluate(index: int, _x: Float, out: Float) -> None:
        calls.append(index)
        out[:] = 0

    def cancel() -> None:
        if len(calls) == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        sample(EulerSchedule.build(5), evaluate, normal(1, 2, 4, 3), NOTHING, cancel)
    assert calls == [0, 1]
