"""What a service's requests look like to Prometheus and OpenTelemetry: give one of the `…Metrics` as its `on_request`.

`OpenTelemetrySpans` is for single runs of stages: give it to `observe_stages`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from musicrt.runtime.errors import InputError
from musicrt.runtime.observation import StageRun
from musicrt.runtime.serving.request import RequestEvent

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_REQUESTS = "Requests that have ended."
_QUEUED = "Seconds that requests waited."
_RAN = "Seconds that requests were at work."
_STAGES = "Seconds of that in the network of each stage."


class PrometheusMetrics:
    """Counts requests by method and outcome, `musicrt_requests_total`, and has histograms of their times in the queue, at work, and there
    in each stage: `musicrt_queue_seconds` and `musicrt_run_seconds` by method, `musicrt_stage_seconds` by method and stage. Callers, whose
    number has no bound, are no label.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """registry: that of the process by default. Raises InputError where prometheus_client is not installed."""
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ModuleNotFoundError:
            raise _missing("prometheus_client") from None
        where: Any = REGISTRY if registry is None else registry
        self._requests = Counter("musicrt_requests", _REQUESTS, ["method", "outcome"], registry=where)
        self._queued = Histogram("musicrt_queue_seconds", _QUEUED, ["method"], registry=where, buckets=_BUCKETS)
        self._ran = Histogram("musicrt_run_seconds", _RAN, ["method"], registry=where, buckets=_BUCKETS)
        self._stages = Histogram("musicrt_stage_seconds", _STAGES, ["method", "stage"], registry=where, buckets=_BUCKETS)

    def __call__(self, event: RequestEvent) -> None:
        """Note a request that has ended."""
        self._requests.labels(event.method, event.outcome).inc()
        self._queued.labels(event.method).observe(event.queued)
        if event.batch:
            self._ran.labels(event.method).observe(event.ran)
        for stage, spent in event.stages.items():
            self._stages.labels(event.method, stage).observe(spent.seconds)


class OpenTelemetryMetrics:
    """The same as instruments of OpenTelemetry: `musicrt.requests`, `musicrt.queue`, `musicrt.run` and `musicrt.stage`."""

    def __init__(self, provider: MeterProvider | None = None) -> None:
        """provider: that of the process by default. Raises InputError where opentelemetry-api is not installed."""
        try:
            from opentelemetry import metrics
        except ModuleNotFoundError:
            raise _missing("opentelemetry") from None
        meter = metrics.get_meter("musicrt", meter_provider=provider)
        self._requests = meter.create_counter("musicrt.requests", description=_REQUESTS)
        self._queued = meter.create_histogram("musicrt.queue", "s", _QUEUED)
        self._ran = meter.create_histogram("musicrt.run", "s", _RAN)
        self._stages = meter.create_histogram("musicrt.stage", "s", _STAGES)

    def __call__(self, event: RequestEvent) -> None:
        """Note a request that has ended."""
        method = {"method": event.method}
        self._requests.add(1, {**method, "outcome": event.outcome})
        self._queued.record(event.queued, method)
        if event.batch:
            self._ran.record(event.ran, method)
        for stage, spent in event.stages.items():
            self._stages.record(spent.seconds, {**method, "stage": stage})


class OpenTelemetrySpans:
    """A span for every run of a stage, below the span that is current there: `musicrt.encoder`, say. A request runs in the context of who
    asked for it, and so below its span. A language model has a run for every column of tokens, 50 a second of music.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """provider: that of the process by default. Raises InputError where opentelemetry-api is not installed."""
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            raise _missing("opentelemetry") from None
        self._tracer = trace.get_tracer("musicrt", tracer_provider=provider)

    def __call__(self, run: StageRun) -> None:
        """Note a run that has ended."""
        end = time.time_ns()
        facts: dict[str, str | int] = {f"musicrt.size.{axis}": size for axis, size in run.sizes.items()}
        facts |= {"musicrt.backend": run.backend, "musicrt.precision": run.precision, "musicrt.runs": run.runs}
        self._tracer.start_span(f"musicrt.{run.stage}", attributes=facts, start_time=end - round(run.seconds * 1e9)).end(end)


def _missing(module: str) -> InputError:
    return InputError(f"metrics need {module}, which is not installed: pip install 'musicrt[metrics]'")
