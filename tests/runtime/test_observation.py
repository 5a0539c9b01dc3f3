"""Who listens to the runs of stages hears of those in its own context, and of all of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.runtime.errors import InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops.denoiser import Denoiser, LoopRunner
from musicrt.runtime.model import Model
from musicrt.runtime.observation import StageRun, StageTime, StageTimes, observe_stages
from musicrt.runtime.select import Choice
from musicrt.runtime.serving.metrics import OpenTelemetrySpans
from musicrt.runtime.serving.request import RequestEvent
from musicrt.runtime.serving.service import Service
from musicrt.runtime.session import Array
from tests.runtime.denoising_gpu import BINS, FRAMES, PLANES, network, on_gpu, schedule, seeded, stage, told
from tests.runtime.fake_gpu import FakeDevice
from tests.runtime.slow_codec import SlowCodec
from tests.runtime.vidmuse_gpu import COLUMNS, Gpu, open_on, write

LATENTS = np.linspace(-1, 1, 64 * 3, dtype=np.float32).reshape(1, 64, 3)


@pytest.fixture(scope="module")
def nano() -> Any:
    pytest.importorskip("onnxruntime")
    with musicrt.load(threads=1, backend="onnxruntime-cpu") as codec:
        yield codec


def feeds(batch: int = 1) -> dict[str, Array]:
    signal = np.ones((batch, PLANES, FRAMES, BINS), np.float32)
    return {"x": signal, "shift": np.ones((batch, 5), np.float32), "context": np.ones((2, batch, 5), np.float32)}


def opened() -> Model:
    return Model(SlowCodec().model.spec, lambda _: FakeSession(stage(), network), Choice("here", "a test", precision="int8"))


# Sessions


def test_runs_and_bound_calls_are_told() -> None:
    heard: list[StageRun] = []
    session = opened().session("network")
    result = np.empty((2, 3, PLANES, FRAMES, BINS), np.float32)
    call = session.bind(feeds(3), {"v": result})
    with observe_stages(heard.append):
        session.run(feeds(2))
        call()
        call()
    session.run(feeds())  # nobody listens any more
    assert [(run.stage, run.backend, run.precision, run.runs) for run in heard] == [("network", "here", "int8", 1)] * 3
    assert [dict(run.sizes) for run in heard] == [{"batch": 2, "rows": 2}, {"batch": 3, "rows": 2}, {"batch": 3, "rows": 2}]
    assert all(0 < run.seconds < 10 for run in heard)


def test_all_who_listen_are_told_and_what_fails_is_no_run() -> None:
    outer, inner = StageTimes(), StageTimes()

    def fail(_feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        raise InputError("no")

    with observe_stages(outer.add):
        opened().session("network").run(feeds())
        with observe_stages(inner.add):
            opened().session("network").run(feeds())
            with pytest.raises(InputError):
                FakeSession(stage(), fail).run(feeds())
    assert outer.stages["network"].runs == 2
    assert inner.stages["network"].runs == 1
    assert outer.stages["network"].seconds > inner.stages["network"].seconds > 0


def test_threads_hear_of_their_own_runs() -> None:
    session, together, heard = opened().session("network"), threading.Barrier(2), dict[int, StageTimes]()

    def work(runs: int) -> None:
        heard[runs] = StageTimes()
        with observe_stages(heard[runs].add):
            together.wait()
            for _ in range(runs):
                session.run(feeds())

    threads = [threading.Thread(target=work, args=(runs,)) for runs in (3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {runs: times.stages["network"].runs for runs, times in heard.items()} == {3: 3, 7: 7}


def test_what_a_listener_raises_ends_the_call() -> None:
    def refuse(_run: StageRun) -> None:
        raise RuntimeError("not that one")

    with observe_stages(refuse), pytest.raises(RuntimeError, match="not that one"):
        opened().session("network").run(feeds())


# On a GPU, where the host waits for a loop and not for its steps


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "call by call"])
def test_a_loop_on_a_gpu_is_one_run(graphs: bool) -> None:
    heard: list[StageRun] = []
    session = on_gpu(stage(), FakeDevice(graphs=graphs))
    session.backend, runner, loop = "gpu", LoopRunner(), schedule("ddim", 4)
    for _ in range(2):  # the second has nothing to record
        with observe_stages(heard.append):
            runner.run(loop, Denoiser(session, *told(loop, 1), result="v"), seeded(1), lambda: None)
    assert [(run.stage, run.sizes, run.runs) for run in heard if run.backend == "gpu"] == [("network", {"batch": 1}, 4)] * 2


def test_columns_on_a_gpu_are_counted() -> None:
    heard: list[StageRun] = []
    pipeline = open_on(Gpu())
    pipeline.model.session("lm").backend = "gpu"
    with observe_stages(heard.append):
        write(pipeline, seed=0)
    assert sum(run.runs for run in heard if run.backend == "gpu") == COLUMNS


# A service


def test_requests_that_run_at_once_are_not_mixed_up(nano: Any) -> None:
    events: dict[int, RequestEvent] = {}

    def note(event: RequestEvent) -> None:
        events[event.number] = event

    steps = [2, 5, 3, 4, 2, 3]
    with Service(nano, workers=3, queue=8, on_request=note) as service:
        requests = [service.submit("decode", LATENTS, steps=count, seed=1) for count in steps]
        for request in requests:
            request.result()
        for _ in service.stream("decode_stream", LATENTS, steps=6, seed=1):
            pass
    assert [events[number + 1].stages["denoiser"].runs for number in range(7)] == [*steps, 6]
    for event in events.values():
        assert 0 < sum(time.seconds for time in event.stages.values()) <= event.ran


def test_requests_of_a_batch_have_the_times_of_it(nano: Any) -> None:
    events: list[RequestEvent] = []
    with Service(nano, workers=1, max_batch=2, max_wait=10.0, on_request=events.append) as service:
        for request in [service.submit("decode", LATENTS, seed=1) for _ in range(2)]:
            request.result()
    assert [event.batch for event in events] == [2, 2]
    assert events[0].stages == events[1].stages
    assert events[0].stages["decoder"].runs == 1


def test_who_listens_to_a_request_of_a_batch_hears_of_it_once(nano: Any) -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    heard: dict[str, list[str]] = {"all": [], "second": []}
    with Service(nano, workers=1, max_batch=2, max_wait=10.0) as service:
        with observe_stages(lambda run: heard["all"].append(run.stage)):
            first = service.submit("decode", LATENTS, seed=1)
            caller.set("second")
            with observe_stages(lambda _run: heard["second"].append(caller.get())):
                second = service.submit("decode", LATENTS, seed=1)
        first.result()
        second.result()
    assert heard["all"].count("decoder") == 1
    assert heard["second"] == ["second"] * len(heard["all"])


def test_requests_run_in_the_context_of_who_asked() -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    heard: list[tuple[str, str]] = []

    class Asking(SlowCodec):
        def decode(self, values: Any, **options: Any) -> Any:
            heard.append(("call", caller.get()))
            return super().decode(values, **options)

    with Service(Asking(), workers=1, on_request=lambda event: heard.append((event.outcome, caller.get()))) as service:
        for name in ("anna", "bert"):
            token = caller.set(name)
            request = service.submit("decode", LATENTS)
            caller.reset(token)
            request.result()
    assert heard == [("call", "anna"), ("done", "anna"), ("call", "bert"), ("done", "bert")]


def test_opentelemetry_has_spans_of_stages_below_that_of_who_asked(nano: Any) -> None:
    pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with Service(nano, workers=1) as service, observe_stages(OpenTelemetrySpans(provider)), tracer.start_as_current_span("song"):
        service.submit("decode", LATENTS, steps=2, seed=1).result()
    *spans, song = exporter.get_finished_spans()
    assert song.name == "song"
    assert [span.name for span in spans].count("musicrt.denoiser") == 2
    for span in spans:
        assert span.parent is not None
        assert span.parent.span_id == song.context.span_id
        assert span.attributes is not None
        assert span.attributes["musicrt.backend"] == "onnxruntime-cpu"
        assert song.start_time is not None
        assert span.start_time is not None
        assert song.start_time < span.start_time < (span.end_time or 0)


def test_times_add_up() -> None:
    times = StageTimes()
    for runs, seconds in ((1, 0.5), (4, 0.25)):
        times.add(StageRun("a", "b", "float32", {}, runs, seconds))
    assert times.stages == {"a": StageTime(5, 0.75)}
