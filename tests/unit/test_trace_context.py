"""W3C trace context without a collector, and where spans go with one."""

from __future__ import annotations

import pytest
from eca_service.settings import SettingsError
from eca_service.tracing import Tracing, configured, http_endpoint

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COLLECTOR = "http://collector:4318"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("given", [f"00-{ID}-{SPAN}-01", f"00-{ID}-{SPAN}-03", f"cc-{ID}-{SPAN}-01-what-comes-later"])
def test_a_sampled_trace_is_passed_on(given: str) -> None:
    trace = Tracing(None).begin(given)
    assert trace is not None
    assert (trace.trace_id, trace.metadata) == (ID, (("traceparent", given[:55]),))
    with Tracing(None).infer([trace, trace]) as metadata:
        assert metadata == trace.metadata
    with Tracing(None).infer([]) as metadata:
        assert metadata == ()


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        f"00-{ID}-{SPAN}-00",  # the caller records nothing: nor does Triton, which does not look at this bit
        f"ff-{ID}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID.upper()}-{SPAN}-01",
        f"00-{ID[1:]}-{SPAN}-01",
        f"00-{ID}-{SPAN}",
    ],
)
def test_what_is_no_sampled_trace_is_dropped(given: str | None) -> None:
    assert Tracing(None).begin(given) is None


@pytest.mark.parametrize(
    ("endpoint", "env", "on", "over_http"),
    [
        (None, {}, False, None),
        (COLLECTOR, {}, True, COLLECTOR + "/v1/traces"),
        (COLLECTOR + "/", {}, True, COLLECTOR + "/v1/traces"),
        ("http://collector:4317", {}, True, None),
        (COLLECTOR, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, True, COLLECTOR + "/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": COLLECTOR + "/own"}, True, COLLECTOR + "/own"),
        (COLLECTOR, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other"}, True, COLLECTOR + "/v1/traces"),
        (COLLECTOR, {"OTEL_SDK_DISABLED": "true"}, False, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_TRACES_EXPORTER": "none"}, False, None),
    ],
)
def test_where_spans_go(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, env: dict[str, str], on: bool, over_http: str | None
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (configured(endpoint), http_endpoint(endpoint)) == (on, over_http)


@pytest.mark.parametrize(
    ("endpoint", "name", "value", "told"),
    [
        ("http://collector:4317", "OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "'soon'"),
        ("http://collector:4317", "OTEL_EXPORTER_OTLP_COMPRESSION", "zip", '"zip"'),
        (COLLECTOR, "OTEL_BSP_SCHEDULE_DELAY", "-1", "must be positive"),
        (COLLECTOR, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "few", "non-negative"),
    ],
)
def test_what_opentelemetry_does_not_take_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, name: str, value: str, told: str
) -> None:
    """By its variable, not as a trace."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"OpenTelemetry cannot start with .*{name}.* as set: .*{told}"):
        Tracing(endpoint).require()


def test_what_opentelemetry_takes_and_where_it_has_no_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it passes over, it speaks of when it starts."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "garbage")
    Tracing(COLLECTOR).require()
    assert not caplog.records
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-1")
    Tracing(None).require()
