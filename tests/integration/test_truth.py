"""What the service says of a request: in its headers, metrics and log the same, and never more series than it has."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import MODEL, Service, golden_png

all_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
LABEL = {"rest": "http", "oip-json": "oip", "oip-binary": "oip", "grpc": "grpc"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def samples(service: Service) -> Iterator[Any]:
    """All samples of a scrape, read by the reference parser of OpenMetrics."""
    for family in text_string_to_metric_families(service.ask("GET", "/metrics").text):
        yield from family.samples


def seconds(service: Service, protocol: str) -> dict[str, float]:
    """The sums of the stages' histograms, and of the requests' as `total`; in milliseconds."""
    found = {}
    for sample in samples(service):
        if sample.labels.get("model") != MODEL or sample.labels.get("protocol", LABEL[protocol]) != LABEL[protocol]:
            continue
        if sample.name == "eca_stage_seconds_sum":
            found[sample.labels["stage"]] = 1000 * sample.value
        if sample.name == "eca_request_seconds_sum":
            found["total"] = 1000 * sample.value
    return found


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    """The log's one line of a request; it may be written a moment after the answer."""
    end, lines = time.monotonic() + 5, list[str]()
    while not lines and time.monotonic() < end:
        lines = [line for line in service.log.read_text().splitlines() if f'"{request_id}"' in line]
    (line,) = map(json.loads, lines)
    found: dict[str, Any] = line
    return found


@all_protocols
def test_header_histograms_and_log_have_the_same_figures(service: Service, repository: Path, protocol: str) -> None:
    image = golden_png(repository, MODEL)
    call(protocol, service, MODEL, [image])
    before = seconds(service, protocol)
    reply = call(protocol, service, MODEL, [image], headers={"x-request-id": f"timing-{protocol}"})
    after = seconds(service, protocol)
    told = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", reply.headers["server-timing"])}
    assert set(told) == {"decode", "queue", "infer", "total"}
    line = line_of(service, f"timing-{protocol}")
    assert line["ms"]["receive"] > 0
    counted = told | {"total": told["total"] - line["ms"]["receive"]}
    assert {name: after[name] - before[name] for name in told} == pytest.approx(counted, abs=0.0015)
    assert told["total"] >= told["decode"] + told["queue"] + told["infer"]
    assert {name: line["ms"][name] for name in told} == told
    assert line["bytes"] >= len(image)
    del line["ms"], line["bytes"], line["time"], line["logger"]
    grpc_call = protocol == "grpc"
    assert line == {
        "level": "info",
        "message": "request",
        "request_id": f"timing-{protocol}",
        "protocol": LABEL[protocol],
        "route": {
            "rest": "POST /v1/models/{model}/classify",
            "grpc": "inference.GRPCInferenceService/ModelInfer",
        }.get(protocol, "POST /v2/models/{model}/infer"),
        "model": MODEL,
        "code": "ok",
        "status": "OK" if grpc_call else 200,
        "images": 1,
    }


@all_protocols
def test_what_fails_is_told_alike(service: Service, protocol: str) -> None:
    reply = call(protocol, service, MODEL, [b"no image"], headers={"x-request-id": f"failed-{protocol}"})
    line = line_of(service, f"failed-{protocol}")
    assert reply.headers["x-request-id"] == f"failed-{protocol}"
    assert re.fullmatch(r"total;dur=[\d.]+", reply.headers["server-timing"])
    assert (line["code"], line["images"]) == ("unsupported_image_format", 1)
    assert line["status"] == ("INVALID_ARGUMENT" if protocol == "grpc" else 415)


@all_protocols
def test_a_trace_s_id_is_with_its_figures(service: Service, repository: Path, protocol: str) -> None:
    """Without any OpenTelemetry configured: the trace is the caller's."""
    trace = f"{PROTOCOLS.index(protocol):02x}{TRACE[2:]}"
    image = golden_png(repository, MODEL)

    def shown() -> set[str]:
        return {s.name for s in samples(service) if s.exemplar and s.exemplar.labels["trace_id"] == trace}

    for unsampled in (f"00-{trace}-b7ad6b7169203331-00", f"ff-{trace}-b7ad6b7169203331-01", trace, "x" * 5000):
        assert call(protocol, service, MODEL, [image], headers={"traceparent": unsampled}).code == "ok"
    assert shown() == set()
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": f"traced-{protocol}"}
    assert call(protocol, service, MODEL, [image], headers=headers).code == "ok"
    assert shown() == {"eca_request_seconds_bucket", "eca_stage_seconds_bucket"}
    assert line_of(service, f"traced-{protocol}")["trace_id"] == trace


def test_nothing_that_a_caller_invents_makes_a_series(service: Service, repository: Path) -> None:
    image = golden_png(repository, MODEL)

    def junk(word: str) -> None:
        headers = {"x-request-id": word, "x-request-timeout-ms": "60000", "user-agent": word, f"x-{word}": word}
        headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
        for protocol in PROTOCOLS:
            call(protocol, service, MODEL, [image], headers=headers)
            call(protocol, service, word, [image], headers=headers)
            call(protocol, service, MODEL, [image], version=int(word[4:]), headers=headers)
        paths = (
            f"/{word}",
            f"/v1/{word}",
            f"/v1/models/{word}",
            f"/v2/{word}",
            f"/v2/models/{word}/infer",
            "/v2/" * 99,
        )
        for path in (*paths, f"/metrics/{word}", f"/livez?{word}", f"/v1/models/{word}/versions/9/classify"):
            for method in ("GET", "POST", "DELETE", "OPTIONS", "PROPFIND"):
                service.ask(method, path, headers)
        with service.channel() as channel:
            for method in (f"/inference.GRPCInferenceService/{word}", f"/{word}/ModelInfer"):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(method)(b"")
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=word))

    def series() -> set[tuple[str, ...]]:
        return {(s.name, *sorted(f"{name}={value}" for name, value in s.labels.items())) for s in samples(service)}

    junk("junk1000")
    known = series()
    junk("junk2000")
    junk("junk3000")
    assert series() == known
    assert not [one for one in known if "junk" in "".join(one)]


def test_health_checks_do_not_fill_the_log(service: Service) -> None:
    service.ask("GET", "/v1/models", {"x-request-id": "seen"})
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/ready"):
        service.ask("GET", path, {"x-request-id": "unseen"})
    log = service.log.read_text()
    assert ('"seen"' in log, '"unseen"' in log) == (True, False)
    for line in log.splitlines():
        assert line.startswith(("{", "ECA Serve", "Documentation", "  curl")), line
