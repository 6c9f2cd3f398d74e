"""Bodies and answers that are compressed."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2_grpc

from tests.integration.callers import infer_request
from tests.integration.conftest import FRESH, MODEL, Service, golden_png


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


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
