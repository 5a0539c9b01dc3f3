"""The DDIM loop: official noise levels and schedules, the published formulas, recorded steps, calls in order on the same buffers."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.loops.ddim import DdimSchedule, sample, step, uniform_timesteps
from musicrt.runtime.loops.diffusion import Float, alphas_cumprod, branches, guide, predict_clean
from tests.conftest import refused
from tests.reference.case import load_case, select
from tests.reference.runner import DATA

CASES = DATA / "semanticodec" / "cases"
ALPHAS = alphas_cumprod(0.0015, 0.0195, 1000)


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Noise levels


def test_alphas_are_those_of_the_official_checkpoints() -> None:
    assert ALPHAS.dtype == np.float32
    assert ALPHAS.shape == (1000,)
    assert [float(ALPHAS[t]).hex() for t in (0, 500, 999)] == ["0x1.ff3b640000000p-1", "0x1.d6b8740000000p-4", "0x1.2a6ede0000000p-13"]
    digest = hashlib.sha256(ALPHAS.astype("<f4").tobytes()).hexdigest()
    assert digest == "5439825f70f91895949369e7d92e41d83356b81ec7facd2241d6b5ba84030793"


# Schedule


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 7, 10, 20, 25, 30, 50, 100, 200])
def test_schedule_is_the_recorded_one(steps: int) -> None:
    case = load_case(CASES / f"frontend-ddim-schedule-s{steps}.safetensors")
    schedule = DdimSchedule.build(steps, case.info["options"]["ddim_eta"], ALPHAS)
    outputs = {name: getattr(schedule, name) for name in ("timesteps", "a_t", "a_prev", "sigma")}
    outputs["sqrt_one_minus_a_t"] = schedule.sqrt_one_minus_a_t
    assert [verdict for verdict in case.compare(outputs) if not verdict.ok] == []
    for name, output in outputs.items():
        if steps > 1 or name != "sigma":  # for one step the official code computes sigma in float32 throughout
            np.testing.assert_array_equal(output, case.stored[name], name)


def test_step_counts_are_the_recorded_ones() -> None:
    case = load_case(CASES / "frontend-ddim-step-counts.safetensors")
    lists = [uniform_timesteps(int(steps), 1000) for steps in case.inputs["ddim_num_steps"]]
    counts = np.array([len(tau) if tau[-1] < 1000 else -1 for tau in lists])  # -1: the official code raises IndexError
    assert [verdict for verdict in case.compare({"steps": counts}) if not verdict.ok] == []
    above = [steps for steps in range(251, 1001) if uniform_timesteps(steps, 1000)[-1] < 1000]
    assert (above[0], above[-1], len(above)) == (334, 500, 167)


def test_every_step_count_gives_a_usable_schedule() -> None:
    for steps in range(1, 1001):
        schedule = DdimSchedule.build(steps, 1.0, ALPHAS)
        assert schedule.steps == len(schedule.timesteps) >= steps
        assert schedule.timesteps.dtype == np.int64
        assert schedule.timesteps[0] == 1
        assert schedule.timesteps[-1] == min(uniform_timesteps(steps, 1000)[-1], 999)
        for table in (schedule.sigma, schedule.direction, schedule.sqrt_a_prev, schedule.sqrt_a_t, schedule.sqrt_one_minus_a_t):
            assert table.dtype == np.float32
            assert ((table >= 0) & (table < 1)).all()
        power = schedule.sqrt_a_prev.astype(np.float64) ** 2 + schedule.direction.astype(np.float64) ** 2 + schedule.sigma**2
        np.testing.assert_allclose(power, 1, atol=3e-7)  # a step keeps the variance


@pytest.mark.parametrize("steps", [0, -1, 1001, 1.0, 1.5, True, "2", None])
def test_impossible_step_counts_are_refused(steps: Any) -> None:
    with refused(InputError, repr(steps), "whole number from 1 to 1000"):
        DdimSchedule.build(steps, 1.0, ALPHAS)


@pytest.mark.parametrize("eta", [-0.1, 1.01, math.nan, math.inf, True, "0", None])
def test_impossible_etas_are_refused(eta: Any) -> None:
    with refused(InputError, repr(eta), "number from 0"):
        DdimSchedule.build(50, eta, ALPHAS)


@pytest.mark.parametrize("eta", [0, 0.0, np.float32(0)])
def test_eta_scales_the_fresh_noise(eta: float) -> None:
    full, half, none = (DdimSchedule.build(10, e, ALPHAS) for e in (1, 0.5, eta))
    np.testing.assert_allclose(half.sigma, full.sigma / 2, rtol=1e-7)
    assert not none.sigma.any()
    np.testing.assert_array_equal(none.direction, np.sqrt(1 - none.a_prev))


# Guidance


def test_guidance_extrapolates_from_the_unconditional_row() -> None:
    v = normal(2, 3, 4)
    conditional, unconditional = v.astype(np.float64)
    combined = guide(v, 3.5)
    assert np.shares_memory(combined, v)
    assert combined.dtype == np.float32
    np.testing.assert_allclose(combined, unconditional + 3.5 * (conditional - unconditional), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(v[1], unconditional)
    single = normal(1, 3, 4)
    np.testing.assert_array_equal(guide(single.copy(), 3.5), single[0])


def test_no_guidance_needs_one_branch() -> None:
    assert [branches(scale) for scale in (1, 1.0, np.float32(1), 2.0, 0, -1.5)] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("guidance", [math.nan, math.inf, 1e39, True, "2", None])
def test_impossible_guidance_is_refused_before_the_network_runs(guidance: Any) -> None:
    with refused(InputError, repr(guidance), "finite number"):
        sample(DdimSchedule.build(2, 1.0, ALPHAS), lambda *_: pytest.fail("ran"), lambda _: pytest.fail("drew"), lambda: None, guidance)


# Steps


def reference_step(schedule: DdimSchedule, index: int, eta: float, x: Any, v: Any, noise: Any) -> tuple[Any, Any]:
    """x_prev and pred_x0 as they are written down, in float64 from the noise levels alone."""
    a = float(ALPHAS[schedule.timesteps[index]])
    b = float(ALPHAS[schedule.timesteps[index - 1] if index else 0])
    sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    clean = math.sqrt(a) * x - math.sqrt(1 - a) * v
    predicted = math.sqrt(a) * v + math.sqrt(1 - a) * x
    return math.sqrt(b) * clean + math.sqrt(1 - b - sigma**2) * predicted + sigma * noise, clean


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("index", [0, 1, 25, 49])
def test_step_follows_the_formula(index: int, eta: float) -> None:
    schedule = DdimSchedule.build(50, eta, ALPHAS)
    x, v, noise = (normal(2, 8, 16, seed=seed) for seed in range(3))
    expected, expected_clean = reference_step(schedule, index, eta, *(array.astype(np.float64) for array in (x, v, noise)))
    kept = noise.copy()
    np.testing.assert_allclose(predict_clean(schedule, index, x, v), expected_clean, atol=2e-6)
    clean = step(schedule, index, x, v, noise)
    assert x.dtype == clean.dtype == np.float32
    np.testing.assert_allclose(x, expected, atol=2e-6)
    np.testing.assert_allclose(clean, expected_clean, atol=2e-6)
    np.testing.assert_array_equal(noise, kept)


@pytest.mark.parametrize("name", ["tiny-ddim-step-cfg2", "tiny-ddim-step-first-cfg3.5-batch2", "tiny-ddim-step-last-cfg1"])
def test_step_gives_the_recorded_signal(name: str) -> None:
    """Without the network: v follows from the recorded prediction of the clean signal."""
    case = load_case(CASES / f"{name}.safetensors")
    options, part = case.info["options"], case.info["outputs"]["x_prev"]["select"]
    schedule, index = DdimSchedule.build(options["ddim_num_steps"], options["ddim_eta"], ALPHAS), options["index"]
    assert schedule.timesteps[index] == options["t"]
    x, noise = (np.ascontiguousarray(select(array, part)) for array in (case.inputs["x"], case.noise[0]))
    v = (schedule.sqrt_a_t[index] * x - case.stored["pred_x0"]) / schedule.sqrt_one_minus_a_t[index]
    step(schedule, index, x, v, noise)
    expected = case.stored["x_prev"].astype(np.float64)
    assert np.linalg.norm(x - expected) / np.linalg.norm(expected) < 1e-6


# Loop


def network(timestep: int, x: NDArray[Any], branch: int) -> Any:
    return np.tanh(x * (1 + timestep / 1000)) - (0.3 + 0.2 * branch) * x


@pytest.mark.parametrize(("steps", "eta", "guidance"), [(1, 1.0, 1.0), (4, 0.0, 2.0), (4, 1.0, 2.0), (30, 1.0, 1.0), (36, 0.5, 3.0)])
def test_sampler_follows_the_formula(steps: int, eta: float, guidance: float) -> None:
    schedule = DdimSchedule.build(steps, eta, ALPHAS)
    noise = [normal(2, 3, 8, seed=k) for k in range(schedule.steps + 1)]

    def evaluate(index: int, x: Float, out: Float) -> None:
        for branch, row in enumerate(out):
            row[:] = network(int(schedule.timesteps[index]), x, branch)

    expected = noise[0].astype(np.float64)
    for k, index in enumerate(reversed(range(schedule.steps)), start=1):
        t = int(schedule.timesteps[index])
        v = network(t, expected, 1) + guidance * (network(t, expected, 0) - network(t, expected, 1))
        expected, _ = reference_step(schedule, index, eta, expected, v, noise[k].astype(np.float64))
    result = sample(schedule, evaluate, lambda k: noise[k], lambda: None, guidance)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(noise[0], normal(2, 3, 8, seed=0), "the noise stays the caller's")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_calls_come_in_order_and_on_the_same_buffers(eta: float) -> None:
    log: list[str] = []
    buffers: set[tuple[int, int]] = set()

    def draw(k: int) -> Float:
        log.append(f"draw {k}")
        return normal(1, 2, 4, seed=k)

    def evaluate(index: int, x: Float, out: Float) -> None:
        log.append(f"evaluate {index}")
        buffers.add((x.ctypes.data, out.ctypes.data))
        assert (x.shape, out.shape) == ((1, 2, 4), (2, 1, 2, 4))
        assert x.flags.c_contiguous
        assert out.flags.c_contiguous
        assert not np.shares_memory(x, out)
        out[:] = x

    sample(DdimSchedule.build(2, eta, ALPHAS), evaluate, draw, lambda: log.append("step"), guidance=2.0)
    assert log == ["draw 0", "evaluate 1", "draw 1", "step", "evaluate 0", "draw 2", "step"]
    assert len(buffers) == 1


def test_cancelling_between_steps_stops_the_loop() -> None:
    evaluated: list[int] = []

    def evaluate(index: int, _: Float, out: Float) -> None:
        evaluated.append(index)
        out[:] = 0.0

    def on_step() -> None:
        if len(evaluated) == 2:
            raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        sample(DdimSchedule.build(5, 1.0, ALPHAS), evaluate, lambda _: np.ones((1, 4), np.float32), on_step)
    assert evaluated == [4, 3]
