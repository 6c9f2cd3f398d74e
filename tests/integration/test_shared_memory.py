"""Tensors in memory shared with Triton: the same answers, and no region is left, however anything ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.integration.callers import call
from tests.integration.conftest import MODEL, Service, golden_png, start, triton_of


def regions(triton_port: int) -> list[str]:
    """The regions that Triton has mapped; none where it does not answer."""
    try:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{triton_port}") as client:
            return list(client.get_system_shared_memory_status().regions)
    except InferenceServerException:
        return []


def await_region(triton_port: int, pid: int, but: str = "") -> str:
    """The one region of the gateway `pid`, once Triton has it and its name is gone, so that no crash leaves it."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [name for name in regions(triton_port) if name != but]
        named = list(Path("/dev/shm").glob(f"eca_gateway_{pid}_*"))
        if len(found) == 1 and found[0].startswith(f"eca_gateway_{pid}_") and not named:
            return found[0]
        time.sleep(0.1)
    raise AssertionError((found, named))


def forget(triton_port: int, region: str) -> None:
    """Has Triton forget it, as soon as it reads no images from there: golden ones are asked for at any time."""
    end = time.monotonic() + 10
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{triton_port}") as client:
        while True:
            try:
                client.unregister_system_shared_memory(region)
                return
            except InferenceServerException as error:
                if "in use" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.01)


def scores(service: Service, image: bytes) -> list[float]:
    reply = call("grpc", service, MODEL, [image] * 5, top_k=10)
    assert reply.code == "ok"
    return [entry[2] for row in reply.rows if not isinstance(row, str) for entry in row]


def test_forgotten_by_triton(service: Service, repository: Path) -> None:
    """A region that Triton does not know costs no request, and another one takes its place."""
    image = golden_png(repository, MODEL)
    before = await_region(service.triton_port, service.process.pid)
    expected = scores(service, image)
    forget(service.triton_port, before)
    assert scores(service, image) == pytest.approx(expected, abs=1e-5)
    after = await_region(service.triton_port, service.process.pid)
    assert after != before, "tensors did travel in it: that it was gone has been noticed"
    assert scores(service, image) == pytest.approx(expected, abs=1e-5)


def test_triton_started_again(service: Service, repository: Path) -> None:
    before = await_region(service.triton_port, service.process.pid)
    os.kill(triton_of(service), signal.SIGKILL)
    await_region(service.triton_port, service.process.pid, but=before)
    service.await_ready()
    assert call("rest", service, MODEL, [golden_png(repository, MODEL)]).code == "ok"


@pytest.fixture
def triton(repository: Path, tmp_path: Path) -> Iterator[Service]:
    """A Triton that outlives its gateways."""
    (tmp_path / "triton").mkdir()
    running = start(repository, tmp_path / "triton", "triton")
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def test_gateways_come_and_go(triton: Service, repository: Path, tmp_path: Path) -> None:
    settings: Any = {"triton_url": f"127.0.0.1:{triton.triton_port}", "triton_shared_memory": True}
    for ending in (signal.SIGKILL, signal.SIGTERM):
        gateway = start(repository, tmp_path, "gateway", **settings)
        try:
            gateway.await_ready()
            await_region(triton.triton_port, gateway.process.pid)
            assert call("grpc", gateway, MODEL, [golden_png(repository, MODEL)]).code == "ok"
        finally:
            gateway.process.send_signal(ending)
            gateway.process.wait(30)
    assert regions(triton.triton_port) == [], "the second forgot the first one's, and then its own"
