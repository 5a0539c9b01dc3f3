"""A service: who waits, whose turn it is, what ends a request, and that nothing outlives it."""

from __future__ import annotations

import gc
import threading
import traceback
import weakref
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import BackendError, BusyError, Cancelled, DeadlineError, InputError
from musicrt.runtime.model import Model
from musicrt.runtime.select import Choice
from musicrt.runtime.serving.bounds import default_workers
from musicrt.runtime.serving.request import Call, Request, RequestEvent
from musicrt.runtime.serving.service import Service
from tests.conftest import refused
from tests.runtime.slow_codec import SOON, SlowCodec, number, until

# The queue


def test_requests_run_in_order_and_give_what_the_pipeline_gives() -> None:
    codec = SlowCodec()
    with Service(codec) as service:
        requests = [service.submit("decode", number(value), seed=10) for value in range(5)]
        for value, request in enumerate(requests):
            np.testing.assert_array_equal(request.result(SOON), number(value + 10))
    assert codec.order == [0, 1, 2, 3, 4]


def test_callers_take_turns() -> None:
    codec = SlowCodec(running=False)
    with Service(codec) as service:
        service.submit("decode", number(0))
        codec.wait_for_begin()
        for value, caller in ((1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")):
            service.submit("decode", number(value), caller=caller)
        assert (service.waiting, service.running) == (6, 1)
        codec.let(7)
    assert codec.order == [0, 1, 4, 6, 2, 5, 3]


def test_as_many_workers_as_asked_run_at_once() -> None:
    codec = SlowCodec(running=False)
    with Service(codec, workers=3) as service:
        requests = [service.submit("decode", number(value)) for value in range(4)]
        for _ in range(3):
            codec.wait_for_begin()
        assert not codec.begun.acquire(timeout=0.05)
        assert (service.running, service.waiting) == (3, 1)
        codec.let(4)
        assert [float(request.result(SOON)[0]) for request in requests] == [0, 1, 2, 3]


def test_a_full_queue_refuses_at_once_and_has_room_again() -> None:
    codec, events = SlowCodec(running=False), list[RequestEvent]()
    with Service(codec, queue=2, per_caller=1, on_request=events.append) as service:
        service.submit("decode", number(0))
        codec.wait_for_begin()
        waiting = service.submit("decode", number(1), caller="a")
        with refused(BusyError, "1 requests of 'a' wait already", "try again later"):
            service.submit("decode", number(2), caller="a")
        service.submit("decode", number(3), caller="b")
        with refused(BusyError, "2 requests wait already", "room for 2"):
            service.submit("decode", number(4), caller="c")
        assert waiting.cancel()
        service.submit("decode", number(5), caller="c")
        codec.let(3)
    assert codec.order == [0, 3, 5]
    assert [event.outcome for event in events] == ["refused", "refused", "cancelled", "done", "done", "done"]
    assert (BusyError.exit_code, DeadlineError.exit_code) == (10, 11)


def test_a_burst_fills_idle_workers_before_the_queue() -> None:
    codec = SlowCodec(running=False)
    with Service(codec, workers=3, queue=1) as service:
        requests = [service.submit("decode", number(value)) for value in range(4)]
        with refused(BusyError, "wait already", "room for 1"):
            service.submit("decode", number(4))
        codec.let(4)
        assert [float(request.result(SOON)[0]) for request in requests] == [0, 1, 2, 3]


def test_what_a_service_can_not_run_is_refused_by_name() -> None:
    with Service(SlowCodec()) as service:
        with refused(InputError, "no method 'close'", "it has decode, decode_batch"):
            service.submit("close")
        with refused(InputError, "no method '_step'"):
            service.submit("_step")
        with refused(InputError, "ask for it with `stream`"):
            service.submit("decode_stream", number(0))
        with refused(InputError, "ask for it with `submit`"):
            service.stream("decode", number(0))
        for wrong in (-1, float("nan"), 1e12):  # a thread that waits longer than it can would die, and all deadlines with it
            with refused(InputError, f"got deadline {wrong!r}, expected seconds from 0 to "):
                service.submit("decode", number(0), deadline=wrong)
        with pytest.raises(TypeError):
            service.submit("decode", number(0), colour="red").result(SOON)
        assert service.submit("decode", number(1)).result(SOON)[0] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"queue": 0},
        {"per_caller": 0},
        {"max_batch": 0},
        {"max_batch": 65},
        {"max_wait": -1.0},
        {"max_wait": 1e12},
        {"patience": "1"},
    ],
)
def test_bounds_are_checked(wrong: dict[str, Any]) -> None:
    with refused(InputError, next(iter(wrong)), "expected"):
        Service(SlowCodec(), **wrong)


def test_default_workers_leave_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicrt.runtime.processor.os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    codec = SlowCodec()
    assert default_workers(codec) == 1  # loaded with all threads
    for threads, expected in ((1, 8), (3, 2), (16, 1)):
        codec.model.threads = threads
        assert default_workers(codec) == expected
    codec.model = Model(codec.model.spec, codec.model.session, Choice("slow", "a test"), device="cuda", threads=1)
    assert default_workers(codec) == 1


# Cancelling, deadlines, errors


def test_cancelled_in_the_queue_it_ends_at_once_and_at_work_between_two_steps() -> None:
    codec = SlowCodec(running=False)
    with Service(codec) as service:
        working, waiting = (service.submit("decode", number(value), steps=5) for value in (0, 1))
        codec.wait_for_begin()
        assert waiting.cancel()
        with refused(Cancelled, "decode was cancelled"):
            waiting.result(0)
        assert working.cancel()
        assert not working.done()
        codec.let()
        with refused(Cancelled, "decode was cancelled"):
            working.result(SOON)
        assert not working.cancel()
        codec.let()
        assert service.submit("decode", number(2)).result(SOON)[0] == 2


def test_deadlines_end_requests_in_the_queue_and_at_work() -> None:
    codec = SlowCodec(running=False)
    with Service(codec) as service:
        working, waiting = (service.submit("decode", number(value), steps=5, deadline=0.2) for value in (0, 1))
        codec.wait_for_begin()
        with refused(DeadlineError, "the deadline of 0.2 s passed while the request was in the queue"):
            waiting.result(SOON)
        codec.let()
        with refused(DeadlineError, "the deadline of 0.2 s passed while the request was at work"):
            working.result(SOON)
        assert codec.order == [0]
        assert working.queued < 0.2 < working.queued + working.ran
        assert waiting.ran == 0.0


@pytest.mark.parametrize("error", [MemoryError("too large"), BackendError("a stage failed"), KeyError("a bug"), SystemExit(3)])
def test_an_error_ends_its_request_only(error: BaseException) -> None:
    with Service(SlowCodec()) as service:
        failed, after = service.submit("decode", number(0), fail=error), service.submit("decode", number(1))
        with pytest.raises(type(error)) as caught:
            failed.result(SOON)
        assert caught.value is error
        assert after.result(SOON)[0] == 1


def test_an_error_that_is_kept_keeps_nothing_of_its_call() -> None:
    """Where memory ran out, the next request needs what the failed one had."""
    error = BackendError("not enough memory")
    error.__cause__ = MemoryError()
    with Service(SlowCodec()) as service:
        gc.disable()
        try:
            values = number(0)
            kept = weakref.ref(values)
            request = service.submit("decode", values, fail=error)
            del values
            assert request.exception(SOON) is error
            until(lambda: kept() is None)
        finally:
            gc.enable()
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "decode"


def test_progress_of_the_caller_is_called_and_may_stop_it() -> None:
    seen = []

    def report(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise Cancelled("enough")

    with Service(SlowCodec()) as service, refused(Cancelled, "enough"):
        service.submit("decode", number(0), steps=3, on_progress=report).result(SOON)
    assert seen == [(1, 3), (2, 3)]


@pytest.mark.parametrize("error", [RuntimeError("a hook that fails hurts nobody"), SystemExit(1)])
def test_events_say_how_long_and_how_it_ended(error: BaseException) -> None:
    codec, events = SlowCodec(running=False), list[RequestEvent]()

    def note(event: RequestEvent) -> None:
        events.append(event)
        raise error

    with Service(codec, on_request=note) as service:
        service.submit("decode", number(0), caller="a")
        service.submit("decode", np.array([np.nan], np.float32), caller="b")
        codec.wait_for_begin()
        threading.Event().wait(0.05)
        codec.let(2)
    assert [(one.number, one.method, one.caller, one.outcome, one.batch) for one in events] == [
        (1, "decode", "a", "done", 1),
        (2, "decode", "b", "failed", 1),
    ]
    assert events[0].ran >= 0.05
    assert events[1].queued >= 0.05
    assert isinstance(events[1].error, InputError)


def test_a_request_that_is_cancelled_while_it_starts_ends_once() -> None:
    """The worker has looked at it before it is cancelled, and goes on before that has ended it."""
    started, looked = list[bool](), threading.Event()
    request = Request(1, Call("decode", (number(0),), {}), None, lambda _request, _error: None)
    worker, settle = threading.Thread(target=lambda: started.append(request.start())), request.settle

    def interrupted() -> None:
        if threading.current_thread() is worker:
            settle()
            looked.set()
        else:
            request._lock.release()
            worker.join(SOON)
            settle()

    request.settle = interrupted  # type: ignore[method-assign]
    request._lock.acquire()
    worker.start()
    assert looked.wait(SOON)
    assert request.cancel()
    assert (started, request.done()) == ([False], True)


# Closing


def test_closing_waits_for_what_there_is_and_refuses_the_rest() -> None:
    codec = SlowCodec(running=False)
    service = Service(codec)
    requests = [service.submit("decode", number(value)) for value in range(3)]
    codec.wait_for_begin()
    closing = threading.Thread(target=service.close)
    closing.start()
    until(lambda: service._is_closed)
    with refused(BusyError, "this service is closed"):
        service.submit("decode", number(9))
    assert closing.is_alive()
    codec.let(3)
    closing.join(SOON)
    assert [float(request.result(0)[0]) for request in requests] == [0, 1, 2]
    assert not any(thread.is_alive() for thread in service._threads)
    service.close()


def test_closing_with_cancel_ends_all_and_waits_for_the_step() -> None:
    codec = SlowCodec(running=False)
    service = Service(codec)
    requests = [service.submit("decode", number(value), steps=9) for value in range(3)]
    codec.wait_for_begin()
    closing = threading.Thread(target=service.close, kwargs={"cancel": True})
    closing.start()
    until(lambda: requests[2].done())
    assert closing.is_alive()
    codec.let()
    closing.join(SOON)
    for request in requests:
        with pytest.raises(Cancelled):
            request.result(0)
    assert codec.order == [0]


def test_a_callback_may_close_it() -> None:
    codec = SlowCodec()
    service = Service(codec)
    request = service.submit("decode", number(0))
    request.add_done_callback(lambda _done: service.close())
    request.result(SOON)
    until(lambda: not any(thread.is_alive() for thread in service._threads))


def test_callbacks_of_two_workers_may_both_close_it() -> None:
    codec = SlowCodec(running=False)
    service = Service(codec, workers=2, on_request=lambda _event: service.close())
    requests = [service.submit("decode", number(value)) for value in range(2)]
    for _ in requests:
        codec.wait_for_begin()
    codec.let(2)
    assert [float(request.result(SOON)[0]) for request in requests] == [0, 1]
    until(lambda: not any(thread.is_alive() for thread in service._threads))


def test_an_error_in_the_block_cancels() -> None:
    codec = SlowCodec(running=False)
    requests = []

    def fail() -> None:
        with Service(codec) as service:
            requests.append(service.submit("decode", number(0), steps=9))
            codec.wait_for_begin()
            codec.let()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(Cancelled):
        requests[0].result(0)
