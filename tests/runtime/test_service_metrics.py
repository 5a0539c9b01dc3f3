"""What Prometheus and OpenTelemetry hear of a service's requests."""

from __future__ import annotations

import sys
from unittest import mock

import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.observation import StageTime
from musicrt.runtime.serving.metrics import OpenTelemetryMetrics, OpenTelemetrySpans, PrometheusMetrics
from musicrt.runtime.serving.request import RequestEvent
from musicrt.runtime.serving.service import Service
from tests.conftest import refused
from tests.runtime.slow_codec import SlowCodec, number

DONE = RequestEvent(1, "decode", None, "done", 0.02, 0.5, 1, None, {"decoder": StageTime(3, 0.25)})
REFUSED = RequestEvent(2, "decode", "a caller", "refused", 0.0, 0.0, 0, None)


def test_prometheus_hears_of_every_request() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    metrics = PrometheusMetrics(registry)
    for event in (DONE, DONE, REFUSED):
        metrics(event)
    assert registry.get_sample_value("musicrt_requests_total", {"method": "decode", "outcome": "done"}) == 2
    assert registry.get_sample_value("musicrt_requests_total", {"method": "decode", "outcome": "refused"}) == 1
    assert registry.get_sample_value("musicrt_queue_seconds_count", {"method": "decode"}) == 3
    assert registry.get_sample_value("musicrt_run_seconds_sum", {"method": "decode"}) == 1.0
    assert registry.get_sample_value("musicrt_run_seconds_bucket", {"method": "decode", "le": "0.3"}) == 0
    assert registry.get_sample_value("musicrt_stage_seconds_sum", {"method": "decode", "stage": "decoder"}) == 0.5


def test_a_service_tells_prometheus() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    with Service(SlowCodec(), workers=1, on_request=PrometheusMetrics(registry)) as service:
        service.submit("decode", number(1.0)).result()
        with pytest.raises(InputError):
            service.submit("decode", number(float("nan"))).result()
    assert registry.get_sample_value("musicrt_requests_total", {"method": "decode", "outcome": "done"}) == 1
    assert registry.get_sample_value("musicrt_requests_total", {"method": "decode", "outcome": "failed"}) == 1


def test_opentelemetry_hears_of_every_request() -> None:
    pytest.importorskip("opentelemetry.metrics")
    provider = mock.MagicMock()
    metrics = OpenTelemetryMetrics(provider)
    meter = provider.get_meter.return_value
    for event in (DONE, REFUSED):
        metrics(event)
    counter, histogram = meter.create_counter.return_value, meter.create_histogram.return_value
    assert [call.args for call in counter.add.call_args_list] == [
        (1, {"method": "decode", "outcome": "done"}),
        (1, {"method": "decode", "outcome": "refused"}),
    ]
    assert [call.args[0] for call in histogram.record.call_args_list] == [0.02, 0.5, 0.25, 0.0]


def test_what_is_missing_is_named() -> None:
    with mock.patch.dict(sys.modules, {"prometheus_client": None}), refused(InputError, "prometheus_client", "musicrt[metrics]"):
        PrometheusMetrics()
    with mock.patch.dict(sys.modules, {"opentelemetry": None}), refused(InputError, "opentelemetry", "musicrt[metrics]"):
        OpenTelemetryMetrics()
    with mock.patch.dict(sys.modules, {"opentelemetry": None}), refused(InputError, "opentelemetry", "musicrt[metrics]"):
        OpenTelemetrySpans()
