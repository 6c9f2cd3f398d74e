"""Callers over all protocols at once, and what they were answered."""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
import httpx
from tritonclient.grpc import service_pb2_grpc

from tests.integration.callers import call, infer_request
from tests.integration.conftest import MODEL, Service

TURNED_AWAY = {"draining", "refused", "unavailable"}


class Load:
    """Callers over all protocols, most requests on a connection of their own; `codes` counts their answers.

    One caller keeps its gRPC channel, which may fail call after call until it is connected again: `kept` counts
    its answers once more.
    """

    CALLERS = ("rest", "oip-json", "oip-binary", "grpc", "rest", "grpc")

    def __init__(self, service: Service, image: bytes) -> None:
        self.codes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self._ends = False
        self._enough = threading.Event()
        self._turns: Counter[threading.Thread] = Counter()
        self._threads = [threading.Thread(target=self._drive, args=(service, image, p)) for p in self.CALLERS]
        self._threads.append(threading.Thread(target=self._keep, args=(service, image)))
        for thread in self._threads:
            thread.daemon = True  # where a test fails they would call for ever
            thread.start()

    def _drive(self, service: Service, image: bytes, protocol: str) -> None:
        while not self._enough.is_set():
            try:
                code = call(protocol, service, MODEL, [image]).code
            except httpx.ConnectError:
                code = "refused"
            except httpx.HTTPError as error:
                code = f"lost: {error!r}"
            self._count(code)
            if code in TURNED_AWAY:
                return

    def _keep(self, service: Service, image: bytes) -> None:
        """One channel for as long as it is answered over it."""
        with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._enough.is_set():
                try:
                    stub.ModelInfer(infer_request(MODEL, [image]), timeout=60)
                    code = "ok"
                except grpc.RpcError as error:
                    code = str(dict(error.trailing_metadata() or ()).get("eca-code", error.code().name.lower()))
                self.kept[code] += 1
                self._count(code)
                if code in TURNED_AWAY and self._ends:
                    return

    def _count(self, code: str) -> None:
        self.codes[code] += 1
        self._turns[threading.current_thread()] += 1

    def round(self) -> None:
        """Returns once each caller that goes on was answered twice more: what it asked last, it asked since."""
        before, end = self._turns.copy(), time.monotonic() + 60
        while any(one.is_alive() and self._turns[one] < before[one] + 2 for one in self._threads):
            assert time.monotonic() < end, self.codes
            time.sleep(0.02)

    def until(self, count: int) -> None:
        """Returns once `count` more requests were answered."""
        at, end = self.codes.total(), time.monotonic() + 60
        while self.codes.total() < at + count:
            assert time.monotonic() < end, self.codes
            time.sleep(0.02)

    def turned_away(self) -> Counter[str]:
        """What all were answered, once each was told that the service ends."""
        self._ends = True
        for thread in self._threads:
            thread.join(60)
        return self.end()

    def end(self) -> Counter[str]:
        """What all were answered."""
        self._enough.set()
        for thread in self._threads:
            thread.join()
        return self.codes
