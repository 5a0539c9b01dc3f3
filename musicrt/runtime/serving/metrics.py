"""What a service's requests look like to Prometheus and OpenTelemetry: give one of these as its `on_request`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musicrt.runtime.errors import InputError
from musicrt.runtime.serving.request import RequestEvent

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_REQUESTS = "Requests that have ended."
_QUEUED = "Seconds that requests waited."
_RAN = "Seconds that requests were at work."


class PrometheusMetrics:
    """Counts requests by method and outcome, `musicrt_requests_total`, and has histograms of their times in the queue and at work,
    `musicrt_queue_seconds` and `musicrt_run_seconds`, by method. Callers, whose number has no bound, are no label.
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

    def __call__(self, event: RequestEvent) -> None:
        """Note a request that has ended."""
        self._requests.labels(event.method, event.outcome).inc()
        self._queued.labels(event.method).observe(event.queued)
        if event.batch:
            self._ran.labels(event.method).observe(event.ran)


class OpenTelemetryMetrics:
    """The same as instruments of OpenTelemetry: `musicrt.requests`, `musicrt.queue` and `musicrt.run`."""

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

    def __call__(self, event: RequestEvent) -> None:
        """Note a request that has ended."""
        method = {"method": event.method}
        self._requests.add(1, {**method, "outcome": event.outcome})
        self._queued.record(event.queued, method)
        if event.batch:
            self._ran.record(event.ran, method)


def _missing(module: str) -> InputError:
    return InputError(f"metrics need {module}, which is not installed: pip install 'musicrt[metrics]'")
