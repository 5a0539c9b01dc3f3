"""Sampling loops on a GPU against those of the host, on a GPU of host memory that runs the kernels' own source.

The same numbers come out, and between the first launch and the last nothing is waited for, copied or allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import pytest

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops.denoiser import Denoiser
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.session import Array
from tests.runtime.denoising_gpu import (
    BINS,
    FRAMES,
    PLANES,
    SOLVERS,
    Gpu,
    injected,
    network,
    on_gpu,
    rounded,
    schedule,
    seeded,
    stage,
    told,
)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "guidance", "batch"), [(1, 1.0, 1), (2, 2.5, 3), (7, 2.5, 2), (7, 1.0, 7)])
def test_loop_gives_what_that_of_the_host_gives(solver: str, steps: int, guidance: float, batch: int) -> None:
    """Bit for bit, with noise of any kind, the first time and when the graph is replayed."""
    gpu = Gpu()
    loop = schedule(solver, steps, guidance, batch)
    first = gpu.compare(loop, injected(loop, batch), batch)
    assert (gpu.compare(loop, injected(loop, batch, 2), batch, seed=2) != first).any()
    np.testing.assert_array_equal(gpu.compare(loop, injected(loop, batch), batch), first)
    assert gpu.device.named("record") == [()]
    first = gpu.compare(loop, seeded(batch), batch)
    assert (gpu.compare(loop, seeded(batch, 2**64 - 1), batch) != first).any()
    assert gpu.device.named("record") == [()] * 2


@pytest.mark.parametrize("known", [0, FRAMES])
def test_known_frames(known: int) -> None:
    gpu = Gpu()
    loop = schedule("flow", 3, 2.0, known=known)
    got = gpu.compare(loop, seeded(1))
    if known:
        np.testing.assert_array_equal(got, loop.known)


def test_frames_may_come_last() -> None:
    gpu = Gpu()
    noise = PlacedNoise(4, ((0, 2), (1, 2)), (PLANES, FRAMES, BINS), frames_last=True)
    gpu.compare(schedule("consistency", 3), noise, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_of_half_precision(solver: str) -> None:
    gpu = Gpu()
    batch = 2
    loop = schedule(solver, 3, 2.5, batch)
    constants, tables = told(loop, batch)
    session = on_gpu(stage("float16", loop.branches is not None), gpu.device)
    got = gpu.runner.run(loop, Denoiser(session, constants, tables, result="v"), injected(loop, batch), lambda: None)

    def evaluate(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return rounded(rounded(network(feeds), "float16"), "float32")

    host = Denoiser(FakeSession(stage("float32", loop.branches is not None), evaluate), constants, tables, result="v")
    np.testing.assert_array_equal(got, gpu.runner.run(loop, host, injected(loop, batch), lambda: None))


# The order of calls


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_is_waited_for_inside_the_loop(solver: str) -> None:
    gpu = Gpu()
    loop = schedule(solver, 3, 2.5, 1)
    name = {"dpm-solver++": "dpm_solver"}.get(solver, solver)
    steps = [("launch", f"{name}_begin"), *[("run", "network"), ("launch", f"{name}_step_float")] * loop.steps]

    def kinds() -> list[str]:
        return [kind for kind, _ in groupby(call[0] for call in gpu.device.calls if call not in steps)]

    gpu.compare(loop, seeded(1))
    assert [call for call in gpu.device.calls if call in steps] == steps
    assert kinds() == ["allocate", "upload", "record", "download", "wait"]
    first = gpu.device.calls.index(steps[0])
    assert gpu.device.calls[first : first + len(steps)] == steps
    gpu.device.calls.clear()
    gpu.compare(loop, seeded(1, 9), seed=4)
    assert kinds() == ["upload", "replay", "download", "wait"]
    assert len(gpu.device.named("wait")) == len(gpu.device.named("download")) == 1
    first = gpu.device.calls.index(("replay",))
    assert gpu.device.calls[first + 1 : first + 1 + len(steps)] == steps


def test_tables_are_uploaded_when_they_change() -> None:
    gpu, loop = Gpu(), schedule("ddim", 4)
    constants, tables = told(loop, 1)
    session = on_gpu(stage(), gpu.device)

    def uploads() -> int:
        gpu.device.calls.clear()
        gpu.runner.run(loop, Denoiser(session, constants, tables, result="v"), seeded(1), lambda: None)
        return len(gpu.device.named("upload"))

    first = uploads()
    assert uploads() == first - 1
    tables = {"shift": tables["shift"] + 1}
    assert uploads() == first


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_without_graphs_the_steps_are_launched(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("MUSICRT_CUDA_GRAPHS", "0")
    gpu, loop = Gpu(graphs=how == "environment"), schedule("ddim", 3, 2.0)
    for _ in range(2):
        gpu.compare(loop, seeded(1))
    assert gpu.device.named("record") == gpu.device.named("replay") == []
    assert len(gpu.device.named("run")) == 2 * loop.steps
    assert len(gpu.device.named("wait")) == 2


def test_long_loop_is_several_graphs() -> None:
    gpu, loop = Gpu(), schedule("dpm-solver++", 205)
    for _ in range(2):
        gpu.compare(loop, seeded(1))
    assert len(gpu.device.named("record")) == len(gpu.device.named("replay")) == 3
    assert [call[1] for call in gpu.device.calls if call[0] == "launch"].count("dpm_solver_begin") == 2
