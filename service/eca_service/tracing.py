"""W3C trace context in and out, spans over OTLP; the only module that knows OpenTelemetry.

Without an endpoint nothing of OpenTelemetry is imported, and a caller's trace is passed on as it came.
https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from eca_service.settings import SettingsError

logger = logging.getLogger(__name__)
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
MOST_SPANS = 100  # of one request's stages: each image has three
FLUSH_S = 3.0
GRPC_PORT = 4317  # where collectors speak OTLP over gRPC
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
Metadata = Sequence[tuple[str, str]]


class Trace:
    """A sampled trace that a request belongs to. `metadata` is what tells the next server of it.

    This one only passes on what the caller sent; nothing is recorded.
    """

    __slots__ = ("metadata", "trace_id")

    def __init__(self, trace_id: str, metadata: Metadata) -> None:
        self.trace_id = trace_id
        self.metadata = metadata

    def stage(self, name: str, began: float, seconds: float) -> None:
        """An image was in stage `name` for `seconds`, from `began` of time.perf_counter's clock."""

    def end(self, route: str, protocol: str, status: int | str, attributes: Mapping[str, str | int]) -> None:
        """The request is answered: `route` is what it asked for, `status` HTTP's number or gRPC's name."""


class _Recorded(Trace):
    """A trace with spans of our own: the request's, and below it one of each stage of an image."""

    __slots__ = ("_began", "_left", "_otel", "_span", "_tracer", "_wall_ns", "context")

    def __init__(self, otel: Any, tracer: Any, parent: Any) -> None:
        self._began, self._wall_ns = time.perf_counter(), time.time_ns()
        self._otel, self._tracer = otel, tracer
        self._span = tracer.start_span("request", parent, otel.SpanKind.SERVER, start_time=self._wall_ns)
        self.context = otel.set_span_in_context(self._span)
        self._left = MOST_SPANS
        super().__init__(f"{self._span.get_span_context().trace_id:032x}", ())

    @property
    def sampled(self) -> bool:
        return bool(self._span.get_span_context().trace_flags.sampled)

    def stage(self, name: str, began: float, seconds: float) -> None:
        if name == "infer" or self._left <= 0:  # a batch has a span of its own, see infer()
            return
        self._left -= 1
        self.span(name, began, seconds)

    def span(self, name: str, began: float, seconds: float, links: Sequence[Any] = ()) -> None:
        """A span below the request's."""
        start_ns = self._wall_ns + int(1e9 * (began - self._began))
        span = self._tracer.start_span(name, self.context, links=links, start_time=start_ns)
        span.end(start_ns + int(1e9 * seconds))

    def end(self, route: str, protocol: str, status: int | str, attributes: Mapping[str, str | int]) -> None:
        if protocol == "grpc":
            service, _, method = route.partition("/")
            name, failed = route, status in {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"}
            ours: dict[str, Any] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
            ours["rpc.response.status_code"] = status
        else:
            method, _, path = route.partition(" ")
            known = method if method in METHODS else "HTTP"  # anybody may invent one
            name, failed = f"{known} {path}".strip(), isinstance(status, int) and status >= 500
            ours = {"http.request.method": method if known == method else "_OTHER", "http.response.status_code": status}
            if path:
                ours["http.route"] = path
        self._span.update_name(name)
        self._span.set_attributes({**ours, **attributes})
        if failed:
            self._span.set_status(self._otel.StatusCode.ERROR, str(attributes.get("eca.code", "")))
        self._span.end()


class Tracing:
    """Makes the traces of requests; `endpoint` is the collector's address, None for the standard variables' one.

    Raises SettingsError where `endpoint` is no address or OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._on = configured(endpoint)
        self._provider: Any = None
        if endpoint and not _is_address(endpoint):
            raise SettingsError(f"ECA_OTLP_ENDPOINT={endpoint!r} is not an address such as http://127.0.0.1:4318")
        if not self._on:
            return
        if not _installed():
            sentence = "OpenTelemetry is not installed; pip install 'eca-serve[tracing]'"
            if endpoint:
                raise SettingsError(f"ECA_OTLP_ENDPOINT is set, but {sentence}")
            logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, traces are not sent: %s", sentence)
            self._on = False

    def require(self) -> None:
        """Raises SettingsError for a value of OpenTelemetry's own variables that it does not take."""
        if not self._on:
            return
        before = logging.root.manager.disable
        logging.disable()  # of what it passes over it speaks when it starts
        try:
            self._made().shutdown()
        except Exception as error:  # each of its parts has its own
            given = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_"))) or "no OTEL_ variables"
            raise SettingsError(f"OpenTelemetry cannot start with {given} as set: {error}") from None
        finally:
            logging.disable(before)

    def start(self) -> None:
        """Begins to record, where there is an endpoint; in the process that answers the requests."""
        if not self._on:
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = self._made()
        self._tracer = self._provider.get_tracer("eca_service")
        self._otel = trace
        self._w3c = TraceContextTextMapPropagator()

    def _made(self) -> Any:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        own = Resource.create({"service.name": "eca-serve", "service.version": version("eca-serve")})
        named = own.merge(OTELResourceDetector().detect())  # the standard variables' last
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(self._endpoint)))
        return provider

    def begin(self, traceparent: str | None, tracestate: str | None = None) -> Trace | None:
        """The trace of a request that came with these headers; None where there is none or it is not sampled."""
        if self._provider is not None:
            given = {"traceparent": traceparent or "", "tracestate": tracestate or ""}
            trace = _Recorded(self._otel, self._tracer, self._w3c.extract(given))
            return trace if trace.sampled else None
        if traceparent is None:
            return None
        found = TRACEPARENT.match(traceparent)
        if found is None or not int(found[2], 16) & 1:
            return None
        return Trace(found[1], (("traceparent", found[0]),))

    @contextlib.contextmanager
    def infer(self, traces: Sequence[Trace]) -> Iterator[Metadata]:
        """Around one batch with images of `traces`, which may be none; what the engine's server is to be told of them.

        The span is the first trace's, and what the server records is below it; the others have one linked to it.
        """
        if not traces:
            yield ()
            return
        first, *others = dict.fromkeys(traces)
        if not isinstance(first, _Recorded):
            yield first.metadata
            return
        kind, began = self._otel.SpanKind.CLIENT, time.perf_counter()
        with self._tracer.start_as_current_span("infer", first.context, kind) as span:
            carrier: dict[str, str] = {}
            self._w3c.inject(carrier)
            try:
                yield tuple(carrier.items())
            finally:
                links = [self._otel.Link(span.get_span_context())]
                for other in others:
                    if isinstance(other, _Recorded):
                        other.span("infer", began, time.perf_counter() - began, links)

    async def close(self) -> None:
        """Sends what was recorded; at most 3 s."""
        if self._provider is None:
            return
        flush = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_S)


def configured(endpoint: str | None) -> bool:
    """Traces are to be sent: to `endpoint`, or to where OpenTelemetry's own variables say."""
    env = os.environ
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def http_endpoint(endpoint: str | None) -> str | None:
    """Where traces go as OTLP over HTTP, the only form that Triton sends; None where there is no such place."""
    if not configured(endpoint) or _protocol(endpoint) == "grpc":
        return None
    if endpoint is None and (own := os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return own
    return (endpoint or os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]).rstrip("/") + "/v1/traces"


def _installed() -> bool:
    try:
        return all(map(find_spec, ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:
        return False


def _is_address(endpoint: str) -> bool:
    try:
        found = urlsplit(endpoint)
        return found.scheme in {"http", "https"} and bool(found.hostname) and found.port != 0
    except ValueError:  # of brackets that do not close, and of a port that is none
        return False


def _protocol(endpoint: str | None) -> str:
    env = os.environ
    said = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    place = endpoint or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    return said or ("grpc" if urlsplit(place).port == GRPC_PORT else "http/protobuf")


def _exporter(endpoint: str | None) -> Any:
    if _protocol(endpoint) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(http_endpoint(endpoint))
