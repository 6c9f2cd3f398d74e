"""Several Triton servers behind one gateway: load goes to all, one killed loses nothing, all killed is told at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.integration.callers import call
from tests.integration.conftest import FRESH, MODEL, Service, golden_png, start


def count(server: Service) -> int:
    """Batches that one Triton has run; -1 where it does not answer."""
    try:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.triton_port}") as client:
            return int(client.get_inference_statistics(MODEL).model_stats[0].execution_count)
    except InferenceServerException:
        return -1


def kill(server: Service) -> None:
    """Ends one Triton and what keeps it, without a word to anybody."""
    for pid in (server.process.pid, *server.children()):
        os.kill(pid, signal.SIGKILL)
    server.process.wait(10)


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> float:
    """Waits for `condition`; the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, what
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture
def pair(repository: Path, tmp_path: Path) -> Iterator[tuple[Service, list[Service]]]:
    """A gateway in front of two Tritons."""
    servers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        servers.append(start(repository, tmp_path / name, "triton"))
    urls = ",".join(f"127.0.0.1:{server.triton_port}" for server in servers)
    gateway = start(repository, tmp_path, "gateway", triton_url=urls)
    try:
        gateway.await_ready()
        until(lambda: min(map(count, servers)) >= 0, "both have the model")
        yield gateway, servers
    finally:
        for process in (gateway.process, *(server.process for server in servers)):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (gateway.process, *(server.process for server in servers)):
            process.wait(30)


@pytest.mark.quiet
def test_servers_die_and_return(pair: tuple[Service, list[Service]], repository: Path, tmp_path: Path) -> None:
    gateway, servers = pair
    image = golden_png(repository, MODEL)
    ended, codes = threading.Event(), Counter[str]()

    def drive(protocol: str) -> None:
        while not ended.is_set():
            codes[call(protocol, gateway, MODEL, [image, image], timeout_ms=10_000).code] += 1

    drivers = [threading.Thread(target=drive, args=(p,)) for p in ("rest", "oip-binary", "grpc", "grpc")]
    before = list(map(count, servers))
    for driver in drivers:
        driver.start()
    try:
        until(lambda: sum(codes.values()) > 40, "answers come")
        shares = [now - then for now, then in zip(map(count, servers), before, strict=True)]
        assert min(shares) > 0.35 * sum(shares), shares
        kill(servers[0])
        at = sum(codes.values())
        until(lambda: sum(codes.values()) > at + 40, "answers go on")
    finally:
        ended.set()
        for driver in drivers:
            driver.join()
    assert set(codes) == {"ok"}, codes

    kill(servers[1])
    started = time.monotonic()
    refused = call("rest", gateway, MODEL, [image], timeout_ms=3000).code
    assert (refused, time.monotonic() - started < 3.5) in {("backend_unavailable", True), ("model_not_ready", True)}
    until(lambda: FRESH.get(f"{gateway.url}/readyz").status_code == 503, "it is told")

    again = tmp_path / "again"
    again.mkdir()
    port = servers[1].triton_port
    servers[1] = start(repository, again, "triton", triton_grpc_port=port)
    until(lambda: _listens(port), "Triton is back")
    assert until(lambda: call("rest", gateway, MODEL, [image]).code == "ok", "it recovers") < 5


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_one_that_cannot_have_the_models_gets_no_images(repository: Path, tmp_path: Path) -> None:
    """A Triton of another repository, say: those that can, serve, and the log names it and the reason."""
    empty = tmp_path / "empty"
    for folder in (empty, tmp_path / "able", tmp_path / "unable"):
        folder.mkdir()
    able = start(repository, tmp_path / "able", "triton")
    unable = start(empty, tmp_path / "unable", "triton")
    urls = f"127.0.0.1:{able.triton_port},127.0.0.1:{unable.triton_port}"
    gateway = start(repository, tmp_path, "gateway", triton_url=urls)
    try:
        gateway.await_ready()
        image = golden_png(repository, MODEL)
        assert {call("grpc", gateway, MODEL, [image]).code for _ in range(30)} == {"ok"}
        until(lambda: f"the Triton at 127.0.0.1:{unable.triton_port} gets no images" in gateway.log.read_text(), "told")
    finally:
        for server in (gateway, able, unable):
            server.process.send_signal(signal.SIGTERM)
        for server in (gateway, able, unable):
            server.process.wait(30)
