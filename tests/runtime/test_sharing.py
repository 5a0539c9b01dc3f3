"""What threads share: sessions that are opened once, used by many, and closed when nobody is in them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import BackendError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.gate import Gate
from musicrt.runtime.model import Model, load
from musicrt.runtime.models.music2latent.spec import build_spec
from musicrt.runtime.recent import Recent
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, Session
from musicrt.runtime.verify import probe_inputs, probe_sizes
from tests.conftest import refused, tiny_layout
from tests.reference import signals
from tests.runtime.fake_gpu import FakeDevice, FakeGpuSession

SOON = 10.0
SPEC = build_spec(tiny_layout("music2latent")["config"], "shared")
STAGE = SPEC.stages[0]
FEEDS = probe_inputs(STAGE, probe_sizes(STAGE, 1), 0)


class Held:
    """What a stage computes with, once `go` is set."""

    def __init__(self) -> None:
        self.inside, self.go, self.most, self._now = threading.Semaphore(0), threading.Event(), 0, 0

    def __call__(self, _feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._now += 1
        self.most = max(self.most, self._now)
        self.inside.release()
        assert self.go.wait(SOON)
        self._now -= 1
        sizes = probe_sizes(STAGE, 1)
        return {tensor.name: np.zeros(tensor.resolve(sizes), tensor.dtype) for tensor in STAGE.outputs}


def test_a_stage_is_opened_once_however_many_ask() -> None:
    opened = []

    def open_session(stage: str) -> Session:
        opened.append(stage)
        threading.Event().wait(0.02)
        return FakeSession(SPEC.stage(stage))

    model = Model(SPEC, open_session, Choice("fake", "a test"))
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: model.session(STAGE.name), range(8)))
    assert opened == [STAGE.name]
    assert all(session is sessions[0] for session in sessions)


def test_a_stage_that_did_not_open_is_tried_again() -> None:
    tries = []

    def open_session(stage: str) -> Session:
        tries.append(stage)
        if len(tries) == 1:
            raise BackendError("no memory")
        return FakeSession(SPEC.stage(stage))

    model = Model(SPEC, open_session, Choice("fake", "a test"))
    with refused(BackendError, "no memory"):
        model.session(STAGE.name)
    assert isinstance(model.session(STAGE.name), FakeSession)


def test_closing_waits_for_running_calls_and_refuses_later_ones() -> None:
    held = Held()
    model = Model(SPEC, lambda stage: FakeSession(SPEC.stage(stage), held), Choice("fake", "a test"))
    session = model.session(STAGE.name)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(session.run, FEEDS) for _ in range(2)]
        for _ in running:
            assert held.inside.acquire(timeout=SOON)
        closing = threading.Thread(target=model.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        for call in (lambda: session.run(FEEDS), lambda: session.bind(FEEDS, {}), lambda: model.session(STAGE.name)):
            with refused(BackendError, "is closed; load the bundle again"):
                call()
        held.go.set()
        closing.join(SOON)
        assert all(set(call.result(0)) == {tensor.name for tensor in STAGE.outputs} for call in running)
    model.close()


def test_a_gate_lets_its_own_thread_shut_it() -> None:
    gate = Gate("it")
    with gate:
        assert gate.shut()
        assert not gate.shut()
        with refused(BackendError, "it is closed"):
            gate.check()


def test_calls_of_one_gpu_take_turns_and_those_of_a_cpu_do_not() -> None:
    for on_gpu, most in ((True, 1), (False, 2)):
        held = Held()
        session: Session = FakeSession(STAGE, held)
        if on_gpu:
            session = FakeGpuSession(session, FakeDevice())
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(session.run, FEEDS) for _ in range(2)]
            assert held.inside.acquire(timeout=SOON)
            assert held.inside.acquire(timeout=0.1 if on_gpu else SOON) != on_gpu
            held.go.set()
            for call in calls:
                call.result(SOON)
        assert held.most == most


def test_recent_keeps_the_last_few_and_gives_all_threads_the_same() -> None:
    kept: Recent[object] = Recent(2)
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda _: kept.get("a", object), range(64)))
    assert len({id(one) for one in given}) == 1
    for key in "bcd":
        kept.get(key, object)
    assert len(kept) == 2
    assert kept.get("a", object) is not given[0]


@pytest.mark.parametrize("threads", [None, 1])
def test_closing_under_real_calls_ends_them_by_a_result_or_a_clear_error(threads: int | None) -> None:
    pytest.importorskip("onnxruntime")
    latents = signals.normal("latents", (1, 64, 20))
    with load(threads=threads) as known:
        expected = known.decode(latents, steps=3, seed=7)
    codec = load(threads=threads)
    begun, together = threading.Semaphore(0), 4

    def work(_number: int) -> list[Any]:
        results: list[Any] = []
        try:
            while True:
                results.append(codec.decode(latents, steps=3, seed=7, on_progress=lambda _done, _total: begun.release()))
        except BackendError as error:
            return [*results, str(error)]

    with ThreadPoolExecutor(together) as pool:
        running = pool.map(work, range(together))
        for _ in range(12):
            assert begun.acquire(timeout=SOON)
        codec.close()
        for *results, error in running:
            assert error.endswith("is closed; load the bundle again")
            for result in results:
                np.testing.assert_array_equal(result, expected)
