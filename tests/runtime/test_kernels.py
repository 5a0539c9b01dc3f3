"""The kernels of the samplers and of noise, run on the host: bit for bit what the NumPy functions give."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from musicrt.runtime.cuda.arguments import GivenNoise, Noise, SeededNoise, Signal, choice_state
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.kernels import Kernels
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.loops import consistency, ddim, dpmsolver, flow
from musicrt.runtime.loops.denoiser import Loop
from musicrt.runtime.loops.diffusion import Float, alphas_cumprod, guide
from musicrt.runtime.noise import PlacedNoise
from tests.conftest import refused
from tests.runtime.host_kernels import HostKernels, on_host

ALPHAS = alphas_cumprod(0.0015, 0.0195, 1000)
CONSISTENCY = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
Made = Callable[[tuple[int, ...], float], Loop]
LOOPS: dict[str, Made] = {
    "ddim": lambda _shape, guidance: ddim.loop(ddim.DdimSchedule.build(6, 1.0, ALPHAS), guidance),
    "ddim-eta-0": lambda _shape, guidance: ddim.loop(ddim.DdimSchedule.build(3, 0.0, ALPHAS), guidance),
    "dpm-solver++": lambda _shape, guidance: dpmsolver.loop(dpmsolver.DpmSolverSchedule.build(5, ALPHAS), guidance),
    "dpm-solver++-1": lambda _shape, guidance: dpmsolver.loop(dpmsolver.DpmSolverSchedule.build(1, ALPHAS), guidance),
    "flow": lambda shape, guidance: flow.loop(flow.EulerSchedule.build(4), normal(*shape[:2], 3, shape[3], seed=5), guidance),
    "flow-free": lambda shape, guidance: flow.loop(flow.EulerSchedule.build(3), np.zeros((*shape[:2], 0, shape[3]), np.float32), guidance),
    "flow-all-known": lambda shape, guidance: flow.loop(flow.EulerSchedule.build(2), normal(*shape, seed=6), guidance),
    "consistency": lambda _shape, _guidance: consistency.loop(consistency.ConsistencySchedule.build(4, **CONSISTENCY)),
    "consistency-1": lambda _shape, _guidance: consistency.loop(consistency.ConsistencySchedule.build(1, **CONSISTENCY)),
}


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def on_device(
    loop: Loop, network: Callable[[int, Float, Float], None], shape: tuple[int, ...], noise: Noise, *, frames_last: bool
) -> Float:
    """The loop as a GPU runs it: begin, then network and step in turn."""
    kernels, x, state = HostKernels(), np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    v = np.empty((loop.branches or 1, *shape), np.float32)
    signal = Signal(on_host(x), None if loop.solver == "ddim" else on_host(state), frames_last)
    coefficients, guidance = on_host(loop.coefficients.copy()), on_host(np.array([loop.guidance], np.float32))
    known = None if loop.known is None else on_host(np.ascontiguousarray(loop.known))
    kernels.begin(loop.solver, signal, coefficients, noise, known)
    for index, position in enumerate(loop.positions, 1):
        network(position, x, v[0] if loop.branches is None else v)
        drawn = noise if index < loop.draws else None
        kernels.step(loop.solver, index, signal, on_host(v), coefficients, guidance, drawn, known)
    return x


def network(index: int, x: Float, out: Float) -> None:
    """A stand-in that mixes signal and position; both rows where there are two."""
    out[...] = np.sin(x + np.float32(0.1 * index)) * (np.float32(1) + np.arange(out.size // x.size).reshape(-1, *[1] * (out.ndim - 1)))


@pytest.mark.parametrize("shape", [(1, 2, 8, 5), (2, 3, 7, 4), (7, 1, 4, 33)])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("name", LOOPS)
def test_loop_is_that_of_the_host_to_the_bit(name: str, guidance: float, shape: tuple[int, ...]) -> None:
    loop = LOOPS[name](shape, guidance)
    draws = normal(loop.draws, *shape, seed=1)
    expected = loop.run(network, lambda index: draws[index], lambda: None)
    for frames_last in (False, True) if loop.known is None else (False,):
        result = on_device(loop, network, shape, GivenNoise(on_host(draws)), frames_last=frames_last)
        np.testing.assert_array_equal(result, expected)
        if loop.known is not None:
            np.testing.assert_array_equal(result[:, :, : loop.known.shape[2]], loop.known)


@pytest.mark.parametrize("frames_last", [True, False])
@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "flow-free", "consistency"])
def test_seeded_loop_is_that_of_the_host(name: str, frames_last: bool) -> None:
    placed = PlacedNoise(2**64 - 5, ((0, 0), (3, 1000), (0, 65)), (2, 8, 12), frames_last)
    shape = (3, *placed.shape)
    loop = LOOPS[name](shape, 2.0)
    if frames_last:
        loop = replace(loop, known=None)  # where there are some, frames are in the second place from last
    noise = SeededNoise(on_host(np.array([placed.seed], np.uint64)), on_host(np.array(placed.places, np.int32)))
    result = on_device(loop, network, shape, noise, frames_last=frames_last)
    np.testing.assert_allclose(result, loop.run(network, placed, lambda: None), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_noise_by_position_is_that_of_the_host(seed: int) -> None:
    placed = PlacedNoise(seed, ((0, 0), (1, 2**20), (5, 7)), (2, 64, 40))
    x, places = np.zeros((3, *placed.shape), np.float32), on_host(np.array(placed.places, np.int32))
    noise, table = SeededNoise(on_host(np.array([seed], np.uint64)), places), np.zeros((10, 5), np.float32)
    table[9] = 0, 0, 0, 0, 1  # a step that leaves nothing but its noise
    signal, v = Signal(on_host(x), None, True), on_host(np.zeros((1, *x.shape), np.float32))
    for draw in (0, 9):
        if draw:
            HostKernels().step("ddim", draw, signal, v, on_host(table), on_host(np.ones(1, np.float32)), noise)
        else:
            HostKernels().begin("ddim", signal, on_host(table), noise)
        expected = placed(draw)
        assert np.count_nonzero(x != expected) <= 1e-4 * x.size  # where a last bit of float64 decides how to round
        np.testing.assert_array_max_ulp(x, expected, 1)
        assert abs(float(x.std()) - 1) < 0.02


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "flow", "consistency"])
def test_networks_may_give_half_precision(solver: str, rows: int) -> None:
    shape, table = (2, 2, 4, 3), normal(2, {"flow": 3, "consistency": 4}.get(solver, 5))
    v = (100 * normal(rows, *shape, seed=2)).astype(np.float16)
    results = []
    for given in (v, v.astype(np.float32)):
        x, state = normal(*shape, seed=3), normal(*shape, seed=4)
        signal = Signal(on_host(x), on_host(state), True)
        HostKernels().step(solver, 1, signal, on_host(given), on_host(table), on_host(np.array([2.5], np.float32)))
        results.append((x, state))
    np.testing.assert_array_equal(results[0], results[1])


def test_every_half_is_widened_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, 1, 256, 256)
    x, table = np.zeros((1, 1, 256, 256), np.float32), np.array([[0] * 3, [1, 0, 0]], np.float32)
    signal = Signal(on_host(x), on_host(np.zeros_like(x)), True)
    HostKernels().step("flow", 1, signal, on_host(halves), on_host(table), on_host(np.ones(1, np.float32)))
    np.testing.assert_array_equal(x, halves[0].astype(np.float32))


def test_guidance_is_that_of_the_host() -> None:
    v, shape = normal(2, 3, 1, 4, 5), (3, 1, 4, 5)
    for scale in (0.0, 1.0, -2.0, 7.5):
        x = np.zeros(shape, np.float32)
        signal = Signal(on_host(x), on_host(np.zeros_like(x)), True)
        table = np.array([[0] * 3, [1, 0, 0]], np.float32)
        HostKernels().step("flow", 1, signal, on_host(v), on_host(table), on_host(np.array([scale], np.float32)))
        np.testing.assert_array_equal(x, guide(v.copy(), scale))


def test_arrays_that_do_not_fit_are_refused() -> None:
    kernels, shape = HostKernels(), (2, 1, 6, 4)
    x, table, one = on_host(np.zeros(shape, np.float32)), on_host(np.zeros((3, 5), np.float32)), on_host(np.ones(1, np.float32))
    signal, v = Signal(x, None, True), on_host(np.zeros((1, *shape), np.float32))
    draws = GivenNoise(on_host(np.zeros((1, *shape), np.float32)))
    seeded = SeededNoise(on_host(np.zeros(1, np.uint64)), on_host(np.zeros((2, 2), np.int32)))
    with refused(InputError, "euler", "expected one of ddim"):
        kernels.begin("euler", signal, table, draws)
    with refused(InputError, "coefficients", "float32 [3, 5]", "[any, 3]"):
        kernels.begin("flow", signal, table, draws)
    with refused(InputError, "no state for dpm-solver++"):
        kernels.begin("dpm-solver++", signal, table, draws)
    with refused(InputError, "step 3", "1 to 2"):
        kernels.step("ddim", 3, signal, v, table, one)
    with refused(InputError, "1 draws", "at least 2"):
        kernels.step("ddim", 1, signal, v, table, one, draws)
    with refused(InputError, "v: got float64"):
        kernels.step("ddim", 1, signal, on_host(np.zeros((1, *shape))), table, one)
    with refused(InputError, "3 rows of v"):
        kernels.step("ddim", 1, signal, on_host(np.zeros((3, *shape), np.float32)), table, one)
    with refused(InputError, "v: got float32", "[1, 2, 1, 6, 4]"):
        kernels.step("ddim", 1, signal, on_host(np.zeros((1, *shape[:3], 5), np.float32)), table, one)
    with refused(InputError, "2 more than a multiple of 4"):
        kernels.begin("ddim", signal, table, seeded)
    with refused(InputError, "known frames for ddim"):
        kernels.begin("ddim", signal, table, draws, x)


# The condition of a graph


@pytest.mark.parametrize(("column", "stop", "failed", "goes_on"), [(3, 5, 0, 1), (4, 5, 0, 1), (5, 5, 0, 0), (6, 5, 0, 0), (3, 5, 2, 0)])
def test_a_loop_goes_on_until_it_stops_or_fails(column: int, stop: int, failed: int, goes_on: int) -> None:
    state, condition = choice_state(column, stop, 9, 0), np.full(1, 7, np.uint32)
    state[4] = failed
    HostKernels().go_on(condition.ctypes.data, on_host(state))
    assert condition[0] == goes_on


# Launches


class FakeDriver:
    """Takes the calls of `Kernels.launch`, and notes them; `result` is what each gives."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.result = 0

    def cuModuleLoadData(self, cubin: bytes) -> tuple[int, str]:  # noqa: N802 - a name of the driver's
        self.calls.append(("load", cubin))
        return self.result, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:  # noqa: N802
        return self.result, f"{module} {name.decode()}"

    def cuLaunchKernel(self, function: str, *grid: int) -> tuple[int]:  # noqa: N802
        *sizes, stream, packed, _extra = grid
        handle, state = (ctypes.c_void_p * 2).from_address(packed)
        values = [ctypes.c_ulonglong.from_address(int(address or 0)).value for address in (handle, state)]
        self.calls.append((function, *sizes, stream, *values))
        return (self.result,)

    def CUstream(self, handle: int) -> int:  # noqa: N802
        return handle


def test_kernels_are_loaded_once_and_launched_with_the_addresses_of_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, device, state = FakeDriver(), SimpleNamespace(architecture="sm_90", stream=77), choice_state(1, 2, 3, 0)
    bindings = pytest.importorskip("cuda.bindings")
    monkeypatch.setattr(bindings, "driver", driver, raising=False)
    monkeypatch.setattr("musicrt.runtime.cuda.kernels.compile_kernels", lambda source, architecture: f"{source} {architecture}".encode())
    kernels = Kernels(cast(Device, device))
    kernels.prepare("go_on", "go_on")
    assert driver.calls == [("load", b"go_on sm_90")]
    kernels.go_on(2**64 - 2, on_host(state))
    kernels.go_on(5, on_host(state))
    grid = (1, 1, 1, 1, 1, 1, 0, 77)
    assert driver.calls[1:] == [("module go_on", *grid, handle, state.ctypes.data) for handle in (2**64 - 2, 5)]
    driver.result = 719
    with refused(BackendError, "CUDA failed at launching go_on", "719"):
        kernels.go_on(5, on_host(state))
    with refused(BackendError, "CUDA failed at loading the kernels of join"):
        kernels.prepare("join")
