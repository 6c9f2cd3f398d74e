"""Good and bad traffic over all protocols, from several callers at once."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
import httpx
from tritonclient.grpc import service_pb2_grpc

from tests.integration.callers import call, infer_request
from tests.integration.conftest import FRESH, MODEL, ROOT, Service, slow_image

CORRUPT = {"image_truncated", "image_undecodable", "unsupported_image_format", "image_too_many_pixels"}
CALLERS = 8


class Traffic:
    """CALLERS threads, each at something else from one request to the next, with `pause_s` between them in the mean."""

    def __init__(
        self, service: Service, answers: Counter[tuple[str, str]], wrong: list[str], pause_s: float, seed: int = 0
    ) -> None:
        """Counts what was asked and answered in `answers`, and writes to `wrong` what should not have been answered."""
        self._service = service
        self._answers, self._wrong = answers, wrong
        self._pause_s = pause_s
        self._port = int(service.url.rpartition(":")[2])
        self._images = [path.read_bytes() for path in sorted((ROOT / "build" / "demo" / "images").iterdir())]
        self._slow = slow_image()
        self._lock = threading.Lock()
        self._seed = seed
        self.kinds: list[tuple[int, str, Callable[[random.Random], str], set[str]]] = [
            (12, "valid", self._valid, {"ok", "overloaded"}),
            (3, "batch", self._batch, {"ok", "overloaded"}),
            (3, "corrupt", self._corrupt, {"ok", *CORRUPT}),
            (1, "too many bytes", self._too_many_bytes, {"body_too_large", "resource_exhausted"}),
            (1, "too many pixels", self._too_many_pixels, {"image_too_many_pixels"}),
            (2, "hangs up", self._hangs_up, {"gone"}),
            (1, "hangs up over gRPC", self._cancels, {"gone", "ok"}),
            (2, "in a hurry", self._in_a_hurry, {"ok", "deadline_exceeded", "overloaded"}),
            (1, "no HTTP", self._no_http, {"refused"}),
            (1, "unknown path", self._unknown, {"404"}),
        ]

    def run(self, seconds: float) -> None:
        """Returns after so many seconds, when all callers are done."""
        self._end = time.monotonic() + seconds
        self._seed += CALLERS
        callers = [threading.Thread(target=self._drive, args=(self._seed + index,)) for index in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    def _drive(self, seed: int) -> None:
        draw = random.Random(seed)
        weights = [kind[0] for kind in self.kinds]
        while time.monotonic() < self._end:
            _, name, act, expected = draw.choices(self.kinds, weights)[0]
            try:
                answer = act(draw)
            except (httpx.HTTPError, OSError) as error:
                answer = f"failed: {error!r}"
            with self._lock:
                self._answers[name, answer] += 1
                if answer not in expected | {"overloaded"}:
                    self._wrong.append(f"{name}: {answer}")
            time.sleep(draw.expovariate(1 / self._pause_s))

    def _protocol(self, draw: random.Random) -> str:
        return draw.choice(("rest", "oip-json", "oip-binary", "grpc"))

    def _valid(self, draw: random.Random) -> str:
        return call(self._protocol(draw), self._service, MODEL, [draw.choice(self._images)]).code

    def _batch(self, draw: random.Random) -> str:
        chosen = draw.choices(self._images, k=draw.randint(2, 32))
        reply = call(self._protocol(draw), self._service, MODEL, chosen)
        if reply.code == "ok" and len(reply.rows) != len(chosen):
            return f"{len(reply.rows)} rows for {len(chosen)} images"
        return reply.code

    def _corrupt(self, draw: random.Random) -> str:
        image = bytearray(draw.choice(self._images))
        for _ in range(20):
            image[draw.randrange(len(image))] = draw.randrange(256)
        reply = call(self._protocol(draw), self._service, MODEL, [bytes(image[: draw.randint(1, len(image))])])
        return str(reply.rows[0]) if reply.code == "ok" and isinstance(reply.rows[0], str) else reply.code

    def _too_many_bytes(self, draw: random.Random) -> str:
        return call(draw.choice(("oip-binary", "grpc")), self._service, MODEL, [bytes((4 << 20) + 100_000)]).code

    def _too_many_pixels(self, draw: random.Random) -> str:
        reply = call(self._protocol(draw), self._service, MODEL, [HUGE_PNG])
        return str(reply.rows[0]) if reply.code == "ok" else reply.code

    def _hangs_up(self, draw: random.Random) -> str:
        image = draw.choice(self._images)
        head = f"POST /v1/models/{MODEL}/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
        message = head.encode() + image
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(message[: draw.choice((len(message), draw.randrange(1, len(message))))])
            time.sleep(draw.random() * 0.02)
        return "gone"

    def _cancels(self, draw: random.Random) -> str:
        with grpc.insecure_channel(f"127.0.0.1:{self._service.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            future = stub.ModelInfer.future(infer_request(MODEL, [draw.choice(self._images)]), timeout=30)
            time.sleep(draw.random() * 0.02)
            future.cancel()
        return "gone"

    def _in_a_hurry(self, draw: random.Random) -> str:
        image = self._slow if draw.random() < 0.1 else draw.choice(self._images)
        return call(self._protocol(draw), self._service, MODEL, [image], timeout_ms=draw.uniform(1, 30)).code

    def _no_http(self, draw: random.Random) -> str:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.settimeout(20)
            connection.sendall(draw.randbytes(draw.randint(20, 5000)) + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass
        return "refused"

    def _unknown(self, draw: random.Random) -> str:
        return str(FRESH.get(f"{self._service.url}/{draw.randrange(10**9)}").status_code)


def huge_png() -> bytes:
    """The header of a PNG that claims 50,000 x 50,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


HUGE_PNG = huge_png()
