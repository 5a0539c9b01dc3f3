"""The consistency loop: official noise levels, the published formulas, calls in the right order and on the same buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops.consistency import ConsistencySchedule, combine, precondition, renoise, sample, scale_input
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.models.music2latent.sampler import Sampler
from tests.conftest import refused

Float = NDArray[np.float32]


def build(steps: Any) -> ConsistencySchedule:
    return ConsistencySchedule.build(steps, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)


# Schedule


@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [
        (1, [80]),
        (2, [80, 2.515219]),
        (3, [80, 9.723201, 0.469979]),
        (4, [80, 17.527832, 2.515219, 0.169753]),
    ],
)
def test_noise_levels_are_the_official_ones(steps: int, sigmas: list[float]) -> None:
    schedule = build(steps)
    assert schedule.steps == steps
    np.testing.assert_allclose(schedule.sigmas[:-1], sigmas, rtol=3e-6)
    assert schedule.sigmas[-1] == pytest.approx(0.002, rel=1e-12)
    assert schedule.sigma_min == schedule.sigmas[-1]


@pytest.mark.parametrize("steps", [1, 2, 5, 100, 1000])
def test_noise_levels_fall(steps: int) -> None:
    sigmas = np.array(build(steps).sigmas)
    assert len(sigmas) == steps + 1
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7), n=2), 0, atol=1e-12)  # evenly spaced in sigma ** (1 / rho)


@pytest.mark.parametrize("steps", [0, -1, 1001, 1.0, 1.5, True, "2", None])
def test_impossible_step_counts_are_refused(steps: Any) -> None:
    with refused(InputError, repr(steps), "whole number from 1 to 1000"):
        build(steps)


def test_network_is_the_identity_at_the_lowest_level() -> None:
    assert precondition(0.002, 0.002, 0.5)[:2] == (1.0, 0.0)
    c_skip, c_out, c_in = precondition(80.0, 0.002, 0.5)
    assert (c_skip, c_out, c_in) == pytest.approx((3.906e-5, 0.49998, 0.0124998), rel=1e-4)
    assert build(1).coefficients(0) == pytest.approx((c_skip, c_out, c_in))


def test_noise_is_added_up_to_the_next_level() -> None:
    schedule = build(3)
    for step in range(2):
        assert schedule.noise_scale(step) == pytest.approx(math.sqrt(schedule.sigmas[step + 1] ** 2 - 0.002**2))
    assert schedule.noise_scale(2) == 0.0


# Steps


def test_steps_are_float32_formulas() -> None:
    rng = np.random.default_rng(0)
    x, output, noise = (rng.standard_normal((2, 3)).astype(np.float32) for _ in range(3))
    out = np.empty_like(x)
    scale_input(x, 0.3, out)
    np.testing.assert_array_equal(out, np.float32(0.3) * x)
    renoise(x, noise, 1.7, out)
    np.testing.assert_allclose(out, x + 1.7 * noise, rtol=1e-6)
    expected = 0.25 * x.astype(np.float64) + 0.75 * output
    result = combine(x, output, 0.25, 0.75)
    assert result is output
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def reference(schedule: ConsistencySchedule, network: Callable[[int, NDArray[Any]], Any], noise: list[Float]) -> Any:
    """The sampler as it is written down, in float64."""
    x = schedule.sigmas[0] * noise[0].astype(np.float64)
    for k in range(schedule.steps):
        sigma, data = schedule.sigmas[k], 0.5
        c_skip = data**2 / ((sigma - 0.002) ** 2 + data**2)
        c_out = data * (sigma - 0.002) / math.sqrt(data**2 + sigma**2)
        c_in = 1 / math.sqrt(sigma**2 + data**2)
        p = c_skip * x + c_out * network(k, c_in * x)
        if k + 1 < schedule.steps:
            x = p + math.sqrt(schedule.sigmas[k + 1] ** 2 - 0.002**2) * noise[k + 1]
    return p


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_sampler_follows_the_formula(steps: int) -> None:
    schedule = build(steps)
    rng = np.random.default_rng(steps)
    noise = [rng.standard_normal((2, 2, 4, 8)).astype(np.float32) for _ in range(steps)]

    def network(step: int, x: NDArray[Any]) -> Any:
        return np.tanh(x * (step + 1)) - 0.3 * x

    def evaluate(step: int, x: Float, out: Float) -> None:
        out[:] = network(step, x)

    result = sample(schedule, evaluate, lambda index: noise[index].copy(), lambda: None)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference(schedule, network, noise), rtol=1e-4, atol=1e-5)


def test_calls_come_in_order_and_on_the_same_buffers() -> None:
    log: list[str] = []
    buffers: set[tuple[int, int]] = set()

    def draw(index: int) -> Float:
        log.append(f"draw {index}")
        return np.ones((1, 2, 4, 8), np.float32)

    def evaluate(step: int, x: Float, out: Float) -> None:
        log.append(f"evaluate {step}")
        buffers.add((x.ctypes.data, out.ctypes.data))
        assert x.flags.c_contiguous
        assert out.flags.c_contiguous
        assert not np.shares_memory(x, out)
        out[:] = x

    sample(build(3), evaluate, draw, lambda: log.append("step"))
    assert log == ["draw 0", "evaluate 0", "step", "draw 1", "evaluate 1", "step", "draw 2", "evaluate 2", "step"]
    assert len(buffers) == 1


def test_cancelling_between_steps_stops_the_loop() -> None:
    evaluated: list[int] = []

    def evaluate(step: int, _: Float, out: Float) -> None:
        evaluated.append(step)
        out[:] = 0.0

    def on_step() -> None:
        if len(evaluated) == 2:
            raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        sample(build(5), evaluate, lambda _: np.ones((1, 4), np.float32), on_step)
    assert evaluated == [0, 1]


# The sampler of Music2Latent, on recorded sessions


class Recorded:
    """A model of fake sessions that notes which stages ran."""

    def __init__(self, codec: Pipeline) -> None:
        self.ran: list[str] = []
        spec = codec.model.spec

        def open_session(name: str) -> FakeSession:
            stage = spec.stage(name)

            def compute(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
                self.ran.append(name)
                size = {"batch": 1, "latents": 3, "steps": len(next(iter(feeds.values())))}
                return {tensor.name: np.zeros(tensor.resolve(size), tensor.dtype) for tensor in stage.outputs}

            return FakeSession(stage, compute)

        self.model = Model(spec, open_session, codec.backend)
        self.sampler = Sampler(self.model, Config.from_mapping(spec.config))

    def run(self, steps: int) -> list[str]:
        self.ran.clear()
        latents = np.zeros((1, 8, 3), np.float32)
        self.sampler.prepare(steps).run(latents, lambda _: np.zeros((1, 2, 128, 24), np.float32), lambda: None)
        return list(self.ran)


def test_one_step_runs_one_graph_and_several_share_the_pyramid(codec: Pipeline) -> None:
    recorded = Recorded(codec)
    assert recorded.run(1) == ["conditioning", "decoder"]
    assert recorded.run(1) == ["decoder"], "what depends on the schedule only is kept"
    assert recorded.run(3) == ["conditioning", "pyramid", "denoiser", "denoiser", "denoiser"]
    assert recorded.run(3) == ["pyramid", "denoiser", "denoiser", "denoiser"]


def test_every_step_gets_its_own_row_of_the_tables(codec: Pipeline) -> None:
    spec = codec.model.spec
    fakes: dict[str, FakeSession] = {}

    def open_session(name: str) -> FakeSession:
        stage = spec.stage(name)

        def compute(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            if name == "conditioning":
                rows = np.arange(1.0, 1.0 + len(feeds["sigma"]), dtype=np.float32)
                shapes = {tensor.name: tensor.resolve({"steps": len(rows)}) for tensor in stage.outputs}
                return {name: np.broadcast_to(rows[:, None], shape) for name, shape in shapes.items()}
            sizes = {"batch": 2, "latents": 3}
            return {tensor.name: np.zeros(tensor.resolve(sizes), tensor.dtype) for tensor in stage.outputs}

        fakes[name] = FakeSession(stage, compute)
        return fakes[name]

    sampler = Sampler(Model(spec, open_session, codec.backend), Config.from_mapping(spec.config))
    sampler.prepare(3).run(np.zeros((2, 8, 3), np.float32), lambda _: np.ones((2, 2, 128, 24), np.float32), lambda: None)
    np.testing.assert_allclose(fakes["conditioning"].calls[0]["sigma"], build(3).sigmas[:-1], rtol=1e-6)
    for name in ("scale_inp", "scale_out", "shift"):
        for step, call in enumerate(fakes["denoiser"].calls):
            assert call[name].shape[0] == 2
            assert (call[name] == step + 1).all()
