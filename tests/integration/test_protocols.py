"""What holds over every protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from eca_service.contract import read
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import PROTOCOLS, Reply, call, infer_request
from tests.integration.conftest import FRESH, MODEL, Service, start
from tests.integration.test_service import golden_png, triton_of

all_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@all_protocols
def test_messages_larger_than_grpc_takes_by_itself(service: Service, protocol: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((1300, 1300, 3), np.uint8)).save(out, "BMP")
    assert len(out.getvalue()) > 5_000_000, "gRPC's own limit is 4 MiB"
    assert call(protocol, service, MODEL, [out.getvalue()]).code == "ok"


def slow_image() -> bytes:
    """Takes long to decode and little to send."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((6000, 6000, 3), np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


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


@all_protocols
def test_over_the_limit_is_refused_at_once(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, protocol: str
) -> None:
    running = start(repository, tmp_path_factory.mktemp("small"), max_inflight_images=2, max_body_bytes=1 << 20)
    try:
        running.await_ready()
        good = golden_png(repository, MODEL)
        replies: list[Reply] = []
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda _: call(protocol, running, MODEL, [good]), range(120)))
        codes = {reply.code for reply in replies}
        assert codes == {"ok", "overloaded"}
        too_large = call(protocol, running, MODEL, [bytes(2 << 20)]).code
        assert too_large in {"body_too_large", "resource_exhausted"}, "gRPC refuses it before the service sees it"
        text = FRESH.get(running.url + "/metrics").text
        assert 'eca_rejected_total{reason="overloaded"}' in text
        assert "eca_inflight 0.0" in text, "every permit was given back"
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0


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


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_stock_clients(service: Service, repository: Path, module: object) -> None:
    """tritonclient as it is installed, with compression, against the gateway."""
    port = service.url.rpartition(":")[2] if module is triton_http else service.grpc_port
    image = golden_png(repository, MODEL)
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:  # type: ignore[attr-defined]
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        as_json = {} if module is triton_http else {"as_json": True}
        assert client.get_server_metadata(**as_json)["name"] == "eca-serve"
        metadata = client.get_model_metadata(MODEL, **as_json)
        assert [output["name"] for output in metadata["outputs"]] == ["label", "index", "score"]
        config = client.get_model_config(MODEL, **as_json)
        if module is triton_http:
            assert config["input"][0]["dims"] == [-1], "numbers are numbers, as Triton has them"
        given = module.InferInput("image", [2], "BYTES")  # type: ignore[attr-defined]
        given.set_data_from_numpy(np.array([image, image], object))
        wanted = [module.InferRequestedOutput(name) for name in ("score", "label")]  # type: ignore[attr-defined]
        packing = {"compression_algorithm": "gzip"}
        if module is triton_http:
            packing = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
        answer = client.infer(MODEL, [given], outputs=wanted, request_id="mine", parameters={"top_k": 4}, **packing)
        assert answer.as_numpy("score").shape == answer.as_numpy("label").shape == (2, 4)
        assert answer.as_numpy("index") is None
        response = answer.get_response(**as_json)
        assert response["id"] == "mine"
        stats = client.get_inference_statistics(MODEL, **as_json)
        assert int(stats["model_stats"][0]["inference_count"]) >= 2


def test_health_and_reflection(service: Service) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=MODEL))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, "nothing can be managed from outside"


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


def test_lengths_that_lie(service: Service) -> None:
    for size, raw in ((8, b"\x04\0\0\0"), (8, b"\xff\xff\xff\xffabcd"), (5, b"\x00\0\0\0x"), ("many", b"")):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = FRESH.post(f"{service.url}/v2/models/{MODEL}/infer", content=head + raw, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


def test_a_compressed_bomb_is_too_large(service: Service) -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    assert len(bomb) < 1 << 20
    for route in (f"/v2/models/{MODEL}/infer", "/v1/classify"):
        answer = FRESH.post(service.url + route, content=bomb, headers={"content-encoding": "deflate"}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0, br", None), ("identity", None)]
)
def test_large_answers_are_compressed_as_negotiated(
    service: Service, repository: Path, accepted: str, encoding: str | None
) -> None:
    route = f"{service.url}/v1/models/{MODEL}/classify"
    listed = {"images": [{"b64": base64.b64encode(golden_png(repository, MODEL)).decode()}] * 20}
    answer = FRESH.post(route, json=listed, headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == encoding
    assert len(answer.json()["results"]) == 20
    assert len(answer.content) > (3 if encoding else 1) * int(answer.headers["content-length"]) - 1
    small = FRESH.post(route, content=golden_png(repository, MODEL), headers={"accept-encoding": accepted})
    assert "content-encoding" not in small.headers
    assert FRESH.get(service.url + "/metrics", headers={"accept-encoding": accepted}).text.endswith("# EOF\n")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_stock_client_with_compressed_answers(service: Service, repository: Path, algorithm: str) -> None:
    images = np.array([golden_png(repository, MODEL)] * 40, object)
    given = triton_http.InferInput("image", [40], "BYTES")
    given.set_data_from_numpy(images)
    with triton_http.InferenceServerClient(service.url.removeprefix("http://")) as client:
        answer = client.infer(MODEL, [given], response_compression_algorithm=algorithm)
        assert answer.as_numpy("score").shape == (40, 5)


class Counted(threading.Thread):
    """A TCP relay to `port` that counts the bytes which come back."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = port
        self.back = 0

    def run(self) -> None:
        """Relays one connection."""
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
        with near, far, self._listener, contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                self.back += len(data)
                near.sendall(data)

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)


def test_grpc_answers_are_compressed_for_who_accepts_it(service: Service, repository: Path) -> None:
    request, bytes_back = infer_request(MODEL, [golden_png(repository, MODEL)] * 64, top_k=10), {}
    for name, encodings in (("any", 0b111), ("identity", 0b001)):
        relay = Counted(service.grpc_port)
        relay.start()
        options = [("grpc.compression_enabled_algorithms_bitset", encodings)]
        with grpc.insecure_channel(f"127.0.0.1:{relay.port}", options) as channel:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
            assert list(answer.outputs[0].shape) == [64, 10]
        relay.join(10)
        bytes_back[name] = relay.back
    assert 100 < bytes_back["any"] < bytes_back["identity"] / 2, bytes_back


WATCHER = """
import http.client, sys, time
connection, spent = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1])), []
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    started = time.perf_counter()
    connection.request("GET", "/livez")
    assert connection.getresponse().read() == b'{"live":true}'
    spent.append(time.perf_counter() - started)
    time.sleep(0.005)
spent.sort()
print(spent[int(0.99 * len(spent))])
"""


@pytest.mark.quiet
def test_live_is_quick_while_large_images_decode(service: Service) -> None:
    image, port = slow_image(), service.url.rpartition(":")[2]
    enough = threading.Event()

    def calls() -> set[str]:
        codes = set()
        while not enough.is_set():
            codes.add(call("oip-binary", service, MODEL, [image], timeout_ms=60_000).code)
        return codes

    with ThreadPoolExecutor(50) as pool:
        callers = [pool.submit(calls) for _ in range(50)]
        try:
            time.sleep(0.5)
            # a process of its own, so that the callers' threads do not hold it up, and the quietest of three looks
            watcher = [sys.executable, "-c", WATCHER, port, "1"]
            looks = [float(subprocess.run(watcher, capture_output=True, check=True).stdout) for _ in range(3)]
        finally:
            enough.set()
        assert set.union(*(one.result() for one in callers)) == {"ok"}
    assert min(looks) < 0.05, looks


def test_ending_under_load_loses_nothing(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path)
    running.await_ready()
    good = golden_png(repository, MODEL)
    outcomes: list[str] = []

    async def drive() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=16)) as client:

            async def one() -> None:
                while True:
                    try:
                        answer = await client.post(f"{running.url}/v1/models/{MODEL}/classify", content=good)
                    except httpx.ConnectError:
                        outcomes.append("refused")
                        return
                    except httpx.HTTPError as error:
                        outcomes.append(f"lost: {error!r}")
                        return
                    code = "ok" if answer.status_code == 200 else answer.json()["code"]
                    outcomes.append(code)
                    if code == "draining":
                        return

            tasks = [asyncio.create_task(one()) for _ in range(16)]
            await asyncio.sleep(1)
            running.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*tasks)

    asyncio.run(drive())
    assert running.process.wait(30) == 0, running.log.read_text()
    assert outcomes.count("ok") > 16
    assert set(outcomes) <= {"ok", "draining", "refused"}, set(outcomes)
