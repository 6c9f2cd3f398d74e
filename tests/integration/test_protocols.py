"""What holds over every protocol."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import signal
import socket
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from eca_service.contract import read
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from tests.integration.callers import PROTOCOLS, call, infer_request
from tests.integration.conftest import FRESH, MODEL, Service, golden_png, slow_image, triton_of

all_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@all_protocols
def test_messages_larger_than_grpc_takes_by_itself(service: Service, protocol: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((1300, 1300, 3), np.uint8)).save(out, "BMP")
    assert len(out.getvalue()) > 5_000_000, "gRPC's own limit is 4 MiB"
    assert call(protocol, service, MODEL, [out.getvalue()]).code == "ok"


def executions(service: Service) -> int:
    """How many batches the model's engine has run, by Triton's own count."""
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{service.triton_port}") as client:
        stats = client.get_inference_statistics(MODEL).model_stats[0]
        return int(stats.execution_count)


@all_protocols
def test_answers_are_the_network_s(service: Service, repository: Path, protocol: str) -> None:
    contract = read(repository / MODEL / "1")
    images = [golden_png(repository, MODEL, index) for index in range(3)]
    reply = call(protocol, service, MODEL, images, top_k=10)
    assert reply.code == "ok"
    for row, expected in zip(reply.rows, contract.golden.probabilities, strict=False):
        assert not isinstance(row, str)
        assert [label for _, label, _ in row] == [contract.labels[index] for index, _, _ in row]
        assert [score for *_, score in row] == sorted((score for *_, score in row), reverse=True)
        scores = {index: score for index, _, score in row}
        np.testing.assert_allclose([scores[i] for i in range(10)], expected, atol=contract.golden.tolerance)


@all_protocols
def test_a_bad_image_costs_only_itself(service: Service, repository: Path, protocol: str) -> None:
    good = golden_png(repository, MODEL)
    alone = call(protocol, service, MODEL, [good])
    mixed = call(protocol, service, MODEL, [good, b"no image", good[:-40], good])
    assert mixed.code == "ok"
    assert mixed.rows[1:3] == ["unsupported_image_format", "image_truncated"]
    for row in (mixed.rows[0], mixed.rows[3]):
        assert row[0][:2] == alone.rows[0][0][:2]


@all_protocols
def test_bad_images_alone_have_each_their_error(service: Service, repository: Path, protocol: str) -> None:
    found = call(protocol, service, MODEL, [golden_png(repository, MODEL)[:-40], b"no image"])
    assert (found.code, found.rows) == ("ok", ["image_truncated", "unsupported_image_format"])


@all_protocols
def test_errors_have_one_code(service: Service, repository: Path, protocol: str) -> None:
    good = golden_png(repository, MODEL)
    assert call(protocol, service, MODEL, [b"no image"]).code == "unsupported_image_format"
    assert call(protocol, service, "nobody", [good]).code == "model_not_found"
    assert call(protocol, service, MODEL, [good], version=9).code == "version_not_found"
    assert call(protocol, service, MODEL, [good], top_k=11).code == "bad_parameter"
    assert call(protocol, service, MODEL, [good], top_k=0).code == "bad_parameter"
    assert call(protocol, service, MODEL, [good] * 65).code == "bad_request"


@all_protocols
def test_a_deadline_is_kept(service: Service, protocol: str) -> None:
    image = slow_image()
    started = time.monotonic()
    reply = call(protocol, service, MODEL, [image], timeout_ms=20)
    assert reply.code == "deadline_exceeded"
    assert time.monotonic() - started < 2


def test_a_caller_that_leaves_frees_its_place(service: Service, repository: Path) -> None:
    """The engine runs nothing for callers that left while they waited for it."""
    good, triton = golden_png(repository, MODEL), triton_of(service)
    call("rest", service, MODEL, [good])
    before = executions(service)
    os.kill(triton, signal.SIGSTOP)  # the engine is busy for as long as we like
    try:
        head = f"POST /v1/models/{MODEL}/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(good)}\r\n\r\n"
        sockets = []
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
            connection.sendall(head.encode() + good)
            sockets.append(connection)
        channel = grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}")
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        futures = [stub.ModelInfer.future(infer_request(MODEL, [good])) for _ in range(20)]
        await_gauge(service, "eca_inflight", 40)
        for connection in sockets:
            connection.close()
        for future in futures:
            future.cancel()
        await_gauge(service, "eca_inflight", 0)
        channel.close()
    finally:
        os.kill(triton, signal.SIGCONT)
    service.await_ready()
    assert call("rest", service, MODEL, [good]).code == "ok"
    # the batch that had left before, the golden images that readiness asks for, and the request just now
    assert executions(service) - before <= 12
    assert 'code="client_closed"' in FRESH.get(service.url + "/metrics").text


def await_gauge(service: Service, name: str, value: float) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if f"{name} {value:.1f}\n" in FRESH.get(service.url + "/metrics").text:
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} did not become {value}: " + FRESH.get(service.url + "/metrics").text)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"[]", {}),
        (b'{"inputs": 1}', {}),
        (b'{"inputs": []}', {}),
        (b'{"inputs": [{"name": "pixels", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["eA=="]}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1], "data": []}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [true], "data": ["eA=="]}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]}]}', {}),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [["eA==", "eA=="]]}]}', {}),
        (b"{}", {"inference-header-content-length": "9"}),
        (b"{}", {"inference-header-content-length": "-1"}),
        (b"{}", {"content-encoding": "br"}),
        (b"{}", {"content-encoding": "gzip"}),
        (gzip.compress(b"{}", mtime=0)[:-4], {"content-encoding": "gzip"}),
    ],
)
def test_what_is_no_inference_request(service: Service, body: bytes, headers: dict[str, str]) -> None:
    answer = FRESH.post(f"{service.url}/v2/models/{MODEL}/infer", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    assert answer.json()["error"].startswith("bad_request: ")


def test_data_may_be_nested_as_the_shape_is(service: Service, repository: Path) -> None:
    rows = [[base64.b64encode(golden_png(repository, MODEL, index)).decode()] for index in range(2)]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": rows}
    answer = FRESH.post(f"{service.url}/v2/models/{MODEL}/infer", json={"inputs": [tensor], "parameters": {"top_k": 1}})
    golden = np.array(read(repository / MODEL / "1").golden.probabilities[:2])
    found = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert found["index"] == golden.argmax(1).tolist()


def test_lengths_that_lie(service: Service) -> None:
    for size, raw in ((8, b"\x04\0\0\0"), (8, b"\xff\xff\xff\xffabcd"), (5, b"\x00\0\0\0x"), ("many", b"")):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = FRESH.post(f"{service.url}/v2/models/{MODEL}/infer", content=head + raw, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
