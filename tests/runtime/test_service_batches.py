"""Requests that run as one: which do, what each gets, and whose fault is whose."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.model import load
from musicrt.runtime.serving.service import Service
from tests.conftest import refused
from tests.reference import signals
from tests.runtime.slow_codec import SOON, SlowCodec, number, until


def test_alike_requests_run_as_one_and_others_alone() -> None:
    codec = SlowCodec(running=False)
    with Service(codec, max_batch=3) as service:
        first = service.submit("decode", number(0), seed=1)
        codec.wait_for_begin()
        alike = [service.submit("decode", number(value), seed=1) for value in (1, 2, 3, 4)]
        other = [
            service.submit("decode", number(5), seed=2),
            service.submit("decode", number(6, size=4), seed=1),
            service.submit("decode", number(7), seed=1, on_progress=lambda _done, _total: None),
        ]
        codec.let(9)
        for value, request in enumerate([first, *alike]):
            np.testing.assert_array_equal(request.result(SOON), number(value + 1))
        assert [float(request.result(SOON)[0]) for request in other] == [7, 7, 8]
    assert codec.batches == [3]
    assert [request.batch for request in alike] == [3, 3, 3, 1]


def test_nothing_runs_as_one_by_default() -> None:
    codec = SlowCodec()
    with Service(codec) as service:
        for request in [service.submit("decode", number(value)) for value in range(5)]:
            request.result(SOON)
    assert codec.batches == []


def test_the_first_waits_for_others_while_nobody_else_does() -> None:
    codec = SlowCodec()
    with Service(codec, max_batch=2, max_wait=SOON) as service:
        first = service.submit("decode", number(0))
        until(lambda: service.running == 1)
        assert not first.done()
        second = service.submit("decode", number(1))
        assert [float(one.result(SOON / 2)[0]) for one in (first, second)] == [0, 1]
        third = service.submit("decode", number(2))
        until(lambda: service.running == 1)
        other = service.submit("decode", number(3), seed=1)  # it must not wait for more of the third's kind
        assert float(third.result(SOON / 2)[0]) == 2
        until(lambda: service.running == 1)
        service.submit("decode", number(4), seed=1)
        other.result(SOON / 2)
    assert codec.batches == [2, 2]


def test_what_is_wrong_with_one_is_its_own_error() -> None:
    codec = SlowCodec(running=False)
    with Service(codec, max_batch=4) as service:
        service.submit("decode", number(0))
        codec.wait_for_begin()
        requests = [service.submit("decode", number(value)) for value in (1, np.nan, 3)]
        codec.let(9)
        assert [float(requests[number].result(SOON)[0]) for number in (0, 2)] == [1, 3]
        with refused(InputError, "NaN"):
            requests[1].result(SOON)
    assert codec.batches == [3]


def test_a_fault_of_the_batch_is_nobodys() -> None:
    """Also one that no codec should raise: sources of one key may still be of different kinds, such as a path and no path."""
    codec = SlowCodec(running=False)

    def fail(*_args: object, **_options: object) -> None:
        codec.batches.append(0)
        raise TypeError("a bug")

    codec.decode_batch = fail  # type: ignore[method-assign, assignment]
    with Service(codec, max_batch=2, max_wait=SOON) as service:
        requests = [service.submit("decode", number(value)) for value in (1, 2)]
        codec.let(2)
        assert [float(request.result(SOON)[0]) for request in requests] == [1, 2]
    assert codec.batches == [0]


def test_who_would_be_late_by_waiting_does_not_wait() -> None:
    codec = SlowCodec()
    with Service(codec, max_batch=3, max_wait=60.0) as service:
        assert float(service.submit("decode", number(1), deadline=SOON).result(SOON)[0]) == 1
        patient, hurried = service.submit("decode", number(2)), service.submit("decode", number(3), deadline=SOON)
        assert [float(request.result(SOON)[0]) for request in (patient, hurried)] == [2, 3]
    assert codec.batches == [2]


def test_one_that_is_cancelled_leaves_the_others_alone_and_the_last_stops_the_work(caplog: pytest.LogCaptureFixture) -> None:
    codec = SlowCodec(running=False)
    with caplog.at_level(logging.INFO, "musicrt"), Service(codec, max_batch=2) as service:
        service.submit("decode", number(0))
        codec.wait_for_begin()
        requests = [service.submit("decode", number(value), steps=9) for value in (1, 2)]
        codec.let(1)
        codec.wait_for_begin()
        requests[0].cancel()
        codec.let(1)
        with pytest.raises(Cancelled):
            requests[0].result(SOON)
        assert not requests[1].done()
        requests[1].cancel()
        codec.let(1)
        with pytest.raises(Cancelled):
            requests[1].result(SOON)
    assert codec.batches == [2]
    assert {vars(record)["event"] for record in caplog.records} == {"request_ended"}  # none runs alone


def test_results_of_a_real_codec_are_those_alone_but_for_the_last_digits() -> None:
    pytest.importorskip("onnxruntime")
    with load(threads=1) as codec, Service(codec, workers=1, max_batch=3, max_wait=SOON) as service:
        latents = [codec.encode(signals.audio("music", 1.0, 44100) * gain) for gain in (1.0, 0.5, 0.25)]
        requests = [service.submit("decode", one, seed=7) for one in latents]
        for one, request in zip(latents, requests, strict=True):
            alone = codec.decode(one, seed=7)
            assert np.linalg.norm(request.result(SOON) - alone) <= 1e-4 * np.linalg.norm(alone)
        assert [request.batch for request in requests] == [3, 3, 3]
