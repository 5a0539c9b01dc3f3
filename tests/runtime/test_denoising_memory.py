"""What loops keep on a GPU from run to run, and what is left there by one that fails or is closed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.cuda import denoising
from musicrt.runtime.errors import BackendError, Cancelled, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops.denoiser import Denoiser
from tests.conftest import refused
from tests.runtime.denoising_gpu import (
    Gpu,
    network,
    on_gpu,
    schedule,
    seeded,
    stage,
    told,
)


def test_memory_of_the_latest_kinds_of_runs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "_BUCKETS", 2)
    gpu = Gpu()

    def records(steps: int, batch: int = 1) -> int:
        gpu.device.calls.clear()
        gpu.compare(schedule("ddim", steps), seeded(batch), batch)
        return len(gpu.device.named("record"))

    assert [records(2), records(4), records(2), records(4)] == [1, 1, 0, 0]
    assert [records(2, batch=2), records(4), records(2)] == [1, 0, 1]
    gc.collect()
    held = gpu.device.held
    gc.disable()  # memory is free when its bucket goes, not when Python looks for cycles
    try:
        assert [records(7), records(4), records(2)] == [1, 1, 1]
        assert gpu.device.held == held
    finally:
        gc.enable()


def test_steps_of_other_positions_are_recorded_anew() -> None:
    """Where a step finds its row of a table is part of the recording."""
    gpu, loop = Gpu(), schedule("ddim", 3)
    turned = replace(loop, positions=tuple(reversed(loop.positions)))
    constants, tables = told(loop, 1)
    session = on_gpu(stage(), gpu.device)
    for one in (loop, turned, loop):
        gpu.runner.run(one, Denoiser(session, constants, tables, result="v"), seeded(1), lambda: None)
    assert len(gpu.device.named("record")) == 2


def test_moved_memory_is_recorded_anew() -> None:
    gpu, loop = Gpu(), schedule("ddim", 2)
    gpu.compare(loop, seeded(1))
    gpu.device.generation += 1
    gpu.compare(loop, seeded(1, 5))
    gpu.compare(loop, seeded(1, 6))
    assert len(gpu.device.named("record")) == 2
    assert len(gpu.device.named("replay")) == 1


def test_failures_leave_what_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, loop = Gpu(), schedule("ddim", 3)
    constants, tables = told(loop, 1)
    session = on_gpu(stage(), gpu.device)
    denoiser = Denoiser(session, constants, tables, result="v")
    bound = session._bind_device
    calls: list[int] = []

    def fail_in_recording(*arguments: Any) -> Callable[[], None]:
        call = bound(*arguments)

        def run() -> None:
            calls.append(1)
            if len(calls) == 5:
                raise BackendError("refused")
            call()

        return run

    monkeypatch.setattr(session, "_bind_device", fail_in_recording)
    with refused(BackendError, "refused"):
        gpu.runner.run(loop, denoiser, seeded(1), lambda: None)
    assert gpu.device.named("record") == [()]
    expected = loop.run(Denoiser(FakeSession(stage(), network), constants, tables, result="v").on_host(), seeded(1), lambda: None)
    for _ in range(2):
        np.testing.assert_array_equal(gpu.runner.run(loop, denoiser, seeded(1), lambda: None), expected)
    assert len(gpu.device.named("replay")) == 1

    def cancel() -> None:
        raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        gpu.runner.run(loop, denoiser, seeded(1), cancel)
    with refused(InputError, "context has shape [1, 2, 5]", "network"):
        gpu.runner.run(loop, Denoiser(session, {"context": np.zeros((1, 2, 5), np.float32)}, tables, result="v"), seeded(1), lambda: None)


def test_closed_session_leaves_nothing_on_the_gpu() -> None:
    gpu, loop = Gpu(), schedule("ddim", 2)
    constants, tables = told(loop, 1)
    before, session = gpu.device.held, on_gpu(stage(), gpu.device)
    gc.collect()
    gc.disable()
    try:
        gpu.runner.run(loop, Denoiser(session, constants, tables, result="v"), seeded(1), lambda: None)
        assert gpu.device.held > before
        session.close()
        assert gpu.device.held == before
    finally:
        gc.enable()
