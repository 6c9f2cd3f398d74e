"""Traces: a caller's trace goes through the gateway to Triton, and both send their spans to a real OTLP receiver."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from eca_service.errors import ServiceError
from eca_service.journal import Entry
from eca_service.tracing import Tracing
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.integration.callers import PROTOCOLS, Reply, call
from tests.integration.conftest import MODEL, Service, ending, golden_png, run, start

CALLER = "b7ad6b7169203331"  # the caller's span
SERVER, CLIENT = 2, 3  # span kinds


@dataclass
class Receiver:
    """What came, one dictionary a span; over HTTP at `url`, over gRPC at `grpc_url`."""

    url: str = ""
    grpc_url: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "service": service,
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "kind": span.kind,
                            "ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
                            "began": span.start_time_unix_nano / 1e6,
                            "status": span.status.code,
                            "links": [link.span_id.hex() for link in span.links],
                            "attributes": {
                                a.key: a.value.int_value if a.value.HasField("int_value") else a.value.string_value
                                for a in span.attributes
                            },
                        }
                    )

    def has(self, trace: str, *names: str) -> bool:
        return set(names) <= {span["name"] for span in self.spans if span["trace"] == trace}

    def of(self, trace: str, *names: str, timeout_s: float = 20) -> list[dict[str, Any]]:
        """The trace's spans in their order, once there is one of each name."""
        end = time.monotonic() + timeout_s
        while True:
            found = sorted((span for span in self.spans if span["trace"] == trace), key=lambda span: span["began"])
            if self.has(trace, *names):
                return found
            assert time.monotonic() < end, (names, found)
            time.sleep(0.05)


def _from_json(body: bytes) -> Any:
    """OTLP's JSON has ids in hexadecimal, protobuf's in base64."""

    def mend(value: Any) -> Any:
        if isinstance(value, list):
            return [mend(one) for one in value]
        if not isinstance(value, dict):
            return value
        ids = {"traceId", "spanId", "parentSpanId"}
        return {
            key: base64.b64encode(bytes.fromhex(one)).decode() if key in ids else mend(one)
            for key, one in value.items()
        }

    message = trace_service_pb2.ExportTraceServiceRequest()
    return json_format.ParseDict(mend(json.loads(body)), message, ignore_unknown_fields=True)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Listens on loopback, over HTTP and over gRPC."""
    found = Receiver()

    class Http(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path != "/v1/traces":
                self.send_error(404)
                return
            if "json" in self.headers["content-type"]:
                found.take(_from_json(body))
            else:
                found.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Grpc(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            found.take(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    web = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Grpc(), server)  # type: ignore[no-untyped-call]
    found.grpc_url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    found.url = f"http://127.0.0.1:{web.server_port}"
    server.start()
    yield found
    server.stop(None).wait()
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture(scope="module")
def traced(repository: Path, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that sends its spans to the receiver, soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        service = start(repository, tmp_path_factory.mktemp("traced"), otlp_endpoint=receiver.url)
    with ending(service):
        yield service


def traces_of(protocol: str) -> list[str]:
    """The traces in which the protocol's requests are."""
    return [f"{PROTOCOLS.index(protocol)}{number}f7651916cd43dd8448eb211c80319c" for number in range(5)]


@pytest.fixture(scope="module")
def replies(traced: Service, repository: Path) -> dict[str, Reply]:
    """One of each trace, all before Triton sends its spans, which takes five seconds."""
    image, found = golden_png(repository, MODEL), {}
    for protocol in PROTOCOLS:
        for trace in traces_of(protocol):
            headers = {"traceparent": f"00-{trace}-{CALLER}-01", "tracestate": "vendor=1", "x-request-id": trace}
            found[trace] = call(protocol, traced, MODEL, [image], headers=headers)
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_caller_s_trace_goes_through_to_triton(replies: dict[str, Reply], receiver: Receiver, protocol: str) -> None:
    """The embedded Triton itself loses one trace in fifteen, whoever asks it: one of five is waited for."""
    end = time.monotonic() + 20
    while not (through := [t for t in traces_of(protocol) if receiver.has(t, "InferRequest", "compute")]):
        assert time.monotonic() < end, receiver.spans
        time.sleep(0.05)
    for trace in traces_of(protocol):
        _check(protocol, trace, replies[trace], receiver, trace in through)


def _check(protocol: str, trace: str, reply: Reply, receiver: Receiver, through: bool) -> None:
    """The spans of one request, and whether Triton's are below them."""
    assert reply.code == "ok"
    name = {
        "rest": "POST /v1/models/{model}/classify",
        "grpc": "inference.GRPCInferenceService/ModelInfer",
    }.get(protocol, "POST /v2/models/{model}/infer")
    spans = receiver.of(trace, name, "decode", "queue", "infer", "postprocess")
    by_name = {span["name"]: span for span in spans}
    request = by_name[name]
    assert (request["parent"], request["kind"], request["service"]) == (CALLER, SERVER, "eca-serve")
    expected = {"eca.request_id": trace, "eca.model": MODEL, "eca.code": "ok", "eca.images": 1}
    assert expected.items() <= request["attributes"].items()
    if protocol == "grpc":
        assert request["attributes"]["rpc.method"] == "ModelInfer"
    else:
        assert (request["attributes"]["http.response.status_code"], request["attributes"]["http.route"]) == (
            200,
            name[5:],
        )
    stages = [by_name[stage] for stage in ("decode", "queue", "infer", "postprocess")]
    assert {span["parent"] for span in stages} == {request["id"]}
    assert [span["began"] for span in stages] == sorted(span["began"] for span in stages)
    assert stages[-1]["began"] + stages[-1]["ms"] <= request["began"] + request["ms"]
    told = {
        part.split(";dur=")[0]: float(part.split(";dur=")[1]) for part in reply.headers["server-timing"].split(", ")
    }
    for stage in ("decode", "queue"):
        assert by_name[stage]["ms"] == pytest.approx(told[stage], abs=0.01), "the same figures"
    assert by_name["infer"]["kind"] == CLIENT
    assert by_name["infer"]["ms"] <= told["infer"] + 0.01
    if through:
        asked = by_name["InferRequest"]
        assert (asked["service"], asked["parent"]) == ("eca-triton", by_name["infer"]["id"])


def test_a_batch_is_linked_from_all_whose_images_are_in_it(
    traced: Service, receiver: Receiver, repository: Path
) -> None:
    """Images that wait while the engine is busy leave together: one span, below one request, linked from the others."""
    image = golden_png(repository, MODEL)

    def ask(trace: str) -> str:
        return call("grpc", traced, MODEL, [image], headers={"traceparent": f"00-{trace}-{CALLER}-01"}).code

    linked = []
    with ThreadPoolExecutor(24) as pool:
        for turn in range(20):  # on a busy machine callers may come one by one, each to a free engine
            traces = [f"{number:02x}{turn:02x}1916cd43dd8448eb211c80319caa" for number in range(24)]
            assert set(pool.map(ask, traces)) == {"ok"}
            infers = [span for trace in traces for span in receiver.of(trace, "infer") if span["name"] == "infer"]
            assert len(infers) == len(traces), "each request has one"
            if linked := [span for span in infers if span["links"]]:
                break
    assert linked, "some left together"
    batches = {span["id"] for span in infers if not span["links"]}
    assert {link for span in linked for link in span["links"]} <= batches


def test_failures_are_told_and_unsampled_requests_leave_no_trace(
    traced: Service, receiver: Receiver, repository: Path
) -> None:
    good = golden_png(repository, MODEL)
    bad = "bb7651916cd43dd8448eb211c80319cb"
    assert call("rest", traced, "nobody", [good], headers={"traceparent": f"00-{bad}-{CALLER}-01"}).code != "ok"
    (span,) = receiver.of(bad, "POST /v1/models/{model}/classify")
    assert (span["attributes"]["eca.code"], span["status"]) == ("model_not_found", 0), "it is the caller's mistake"
    quiet = "cc7651916cd43dd8448eb211c80319cb"
    for protocol in PROTOCOLS:
        assert call(protocol, traced, MODEL, [good], headers={"traceparent": f"00-{quiet}-{CALLER}-00"}).code == "ok"
    traced.ask("GET", "/livez", {"traceparent": f"00-{quiet}-{CALLER}-01"})
    late = "dd7651916cd43dd8448eb211c80319cb"
    headers = {"traceparent": f"00-{late}-{CALLER}-01"}
    assert call("rest", traced, MODEL, [good], timeout_ms=0.001, headers=headers).code == "deadline_exceeded"
    (span,) = receiver.of(late, "POST /v1/models/{model}/classify")
    assert (span["attributes"]["http.response.status_code"], span["status"]) == (504, 2)
    assert not [span for span in receiver.spans if span["trace"] == quiet]


async def test_over_grpc_and_with_a_trace_of_its_own(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another-name")
    tracing = Tracing(receiver.grpc_url)
    tracing.start()
    entry = Entry("http", trace=tracing.begin(None))
    entry.route, entry.status = "INVENTED ", 404
    assert entry.trace is not None
    for _ in range(200):
        entry.stage("decode", MODEL, entry.started, 0.5)
    with contextlib.suppress(ServiceError), tracing.infer([entry.trace]) as metadata:
        assert dict(metadata)["traceparent"].startswith(f"00-{entry.trace.trace_id}-")
        raise ServiceError("backend_unavailable", "gone")
    entry.close()
    await tracing.close()
    spans = receiver.of(entry.trace.trace_id, "HTTP", "infer", timeout_s=5)
    assert {span["service"] for span in spans} == {"another-name"}
    assert [span["name"] for span in spans].count("decode") == 100, "the rest is left out"
    assert next(span["status"] for span in spans if span["name"] == "infer") == 2


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_not_there_holds_nobody_up(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    tracing = Tracing("http://127.0.0.1:1")
    tracing.start()
    started = time.monotonic()
    for _ in range(5000):
        trace = tracing.begin(None)
        assert trace is not None
        trace.end("GET /", "http", 200, {})
    await tracing.close()
    assert time.monotonic() - started < 20, "what is left is given up; left alone, its sender tries for 30 s"


def test_without_an_endpoint_nothing_of_opentelemetry_s_sdk_is_loaded() -> None:
    script = (
        "import sys; from eca_service.app import create_app; from eca_service.settings import Settings; "
        "create_app(Settings()).state.core.tracing.start(); "
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_configured_but_not_installed_is_a_sentence(repository: Path, tmp_path: Path) -> None:
    """An import path on which OpenTelemetry's SDK cannot be found."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('opentelemetry.sdk'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "ECA_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    done = run("eca_service", "up", "--repository", repository, environment=environment)
    assert done.returncode == 2
    assert "pip install 'eca-serve[tracing]'" in done.stderr
