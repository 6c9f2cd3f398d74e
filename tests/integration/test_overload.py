"""More load than the service can carry, large callers beside small ones, and the end in the middle of it."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from eca_service import metrics
from eca_service.client import AsyncClient, Client, FileResult

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, Service, ending, golden_png, ready, slow_image, start
from tests.integration.traffic import TURNED_AWAY, Load
from tests.load import noop
from tests.load.goodput import sweep

DEADLINE_S = 0.8
PER_S = 200


@pytest.mark.quiet
def test_goodput_at_five_times_the_capacity(tmp_path: Path) -> None:
    """Of an engine whose time other programs do not change; of a network: python -m tests.load.goodput."""
    noop.publish(tmp_path / "repository", crop=32, pace_s=1 / PER_S)
    with ready(tmp_path / "repository", tmp_path) as running:
        found = asyncio.run(sweep(running, noop.NAME, (1.2, 5.0), rounds=3, seconds=2.5, deadline_s=DEADLINE_S))
    peak, flooded = (statistics.median(one.goodput_per_s for one in found[multiple]) for multiple in (1.2, 5.0))
    told = [(one.offered_per_s, one.goodput_per_s, one.p99_s, one.codes) for row in found.values() for one in row]
    # A machine that others use stops us for longer than our margins, in some rounds: the median of three is ours, and
    # what the engine's pace comes to shows where it is most of them. A stall of 0.2 s makes four of a round's 70 late.
    steady = peak > 0.9 * PER_S
    assert flooded >= (0.95 if steady else 0.7) * peak > 0, told
    assert statistics.median(one.p99_s for one in found[5.0]) < 1.05 * DEADLINE_S, told
    assert statistics.median(one.late for one in found[5.0]) < (0.05 if steady else 0.2), told
    assert sum(one.codes["overloaded"] for one in found[5.0]) > 0, "what cannot be met is refused at once"
    assert {code for row in found.values() for one in row for code in one.codes} <= {
        "ok",
        "overloaded",
        "deadline_exceeded",
    }


@pytest.mark.quiet
def test_a_thousand_images_of_one_caller_leave_room_for_the_others(repository: Path, tmp_path: Path) -> None:
    with ready(repository, tmp_path, max_images=1000, max_inflight_images=2000) as running:
        image, rows, waits = golden_png(repository, MODEL), list[object](), list[float]()
        call("rest", running, MODEL, [image] * 40)  # what an image costs is learnt
        started = time.monotonic()

        def large() -> None:
            rows.extend(call("oip-binary", running, MODEL, [image] * 1000).rows)

        thread = threading.Thread(target=large)
        thread.start()
        try:
            while "eca_inflight 1.0" not in FRESH.get(running.url + "/metrics").text:
                assert time.monotonic() < started + 10
            while thread.is_alive():
                asked = time.monotonic()
                assert call(PROTOCOLS[len(waits) % 4], running, MODEL, [image]).code == "ok"
                waits.append(time.monotonic() - asked)
        finally:
            thread.join()
        took = time.monotonic() - started
        assert [isinstance(row, list) for row in rows] == [True] * 1000
        assert len(waits) >= 4, "others were answered all along"
        assert statistics.median(waits) < took / 5, (took, waits)


def test_ending_under_load_loses_nothing_on_any_protocol(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path)
    try:
        running.await_ready()
        load = Load(running, golden_png(repository, MODEL))
        load.until(60)
    finally:
        running.process.send_signal(signal.SIGTERM)
    codes = load.turned_away()
    assert running.process.wait(30) == 0, running.log.read_text()
    assert codes["ok"] >= 60
    assert set(codes) <= {"ok", *TURNED_AWAY}, codes
    assert codes["draining"] > 0, "some are told why"


@pytest.mark.parametrize("behind", [0, 3_000_000])
def test_ending_under_load_loses_nothing_on_kept_connections(repository: Path, tmp_path: Path, behind: int) -> None:
    """Where bodies are large they are still being sent when they are answered."""
    running = start(repository, tmp_path)
    image, url = golden_png(repository, MODEL) + bytes(behind), f"{running.url}/v1/models/{MODEL}/classify"
    answered = threading.Semaphore(0)

    def calls() -> Counter[str]:
        codes = Counter[str]()
        with httpx.Client(timeout=60) as client:
            while not codes["draining"] + codes["refused"]:
                try:
                    answer = client.post(url, content=image)
                    codes["ok" if answer.status_code == 200 else answer.json()["code"]] += 1
                    answered.release()
                except httpx.ConnectError:
                    codes["refused"] += 1
        return codes

    with ending(running):
        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(calls) for _ in range(8)]
            enough = all(answered.acquire(timeout=60) for _ in range(200))
            running.process.send_signal(signal.SIGTERM)
        codes = sum((one.result() for one in callers), Counter[str]())
    assert enough, codes
    assert set(codes) <= {"ok", "draining", "refused"}, codes


def test_what_takes_longer_than_the_grace_is_told_that_the_service_ends(repository: Path, tmp_path: Path) -> None:
    noop.publish(tmp_path / "repository", max_batch=1, crop=32, pace_s=1.5)
    running = start(tmp_path / "repository", tmp_path, grace_ms=300)
    images = [golden_png(repository, MODEL)] * 4
    with ThreadPoolExecutor(2) as pool:
        try:
            running.await_ready()
            asked = [pool.submit(call, protocol, running, noop.NAME, images) for protocol in ("rest", "grpc")]
            while "eca_inflight 2.0" not in FRESH.get(running.url + "/metrics").text:
                assert not any(one.done() for one in asked)
        finally:
            running.process.send_signal(signal.SIGTERM)
        ended = time.monotonic()
        assert [one.result().code for one in asked] == ["draining", "unavailable"]
        assert time.monotonic() - ended < 4
    assert running.process.wait(30) == 0, running.log.read_text()
    assert '"code": "ok", "status": ""' not in running.log.read_text()


@pytest.mark.parametrize("way", ["blocking", "asyncio"])
def test_files_of_a_slow_service_are_waited_for(repository: Path, tmp_path: Path, way: str) -> None:
    """Of a folder of images most were refused: the last of 128 at once could not be answered within a minute."""
    noop.publish(tmp_path / "repository", max_batch=1, crop=32, pace_s=0.1)
    image = tmp_path / "image.png"
    image.write_bytes(golden_png(repository, MODEL))
    with ready(tmp_path / "repository", tmp_path) as running:

        async def gathered() -> list[FileResult]:
            async with AsyncClient(running.url, timeout_s=1) as client:
                return [one async for one in client.classify_files([image] * 64, concurrency=8)]

        if way == "asyncio":
            found = asyncio.run(gathered())
        else:
            with Client(running.url, timeout_s=1) as client:
                found = list(client.classify_files([image] * 64, concurrency=8))
    assert [one.error for one in found] == [None] * 64


def test_as_many_batches_at_once_as_the_engine_has_instances(repository: Path, tmp_path: Path) -> None:
    """Two instances of half a second an image: four images take a second, not two."""
    noop.publish(tmp_path / "repository", max_batch=1, crop=32, pace_s=0.5, instances=2)
    with ready(tmp_path / "repository", tmp_path) as running:
        image = golden_png(repository, MODEL)
        took = []
        for _ in range(2):
            started = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                replies = list(pool.map(lambda protocol: call(protocol, running, noop.NAME, [image]), PROTOCOLS))
            took.append(time.monotonic() - started)
            assert [reply.code for reply in replies] == ["ok"] * 4
        assert 0.95 < min(took) < 1.9, took


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes two images at once."""
    with ready(repository, tmp_path_factory.mktemp("small"), max_inflight_images=2, max_body_bytes=1 << 20) as running:
        yield running


def rejected(service: Service) -> float:
    """Requests refused so far because the service was full."""
    found = metrics.parse(FRESH.get(service.url + "/metrics").text)
    wanted = ("eca_rejected_total", {"reason": "overloaded"})
    return sum(sample.value for sample in found if (sample.name, sample.labels) == wanted)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_over_the_limit_is_refused_at_once(small: Service, repository: Path, protocol: str) -> None:
    good, before = golden_png(repository, MODEL), rejected(small)
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: call(protocol, small, MODEL, [good]), range(120)))
    codes = Counter(reply.code for reply in replies)
    assert codes.keys() == {"ok", "overloaded"}
    too_large = call(protocol, small, MODEL, [bytes(2 << 20)]).code
    assert too_large in {"body_too_large", "resource_exhausted"}, "gRPC refuses it before the service sees it"
    assert rejected(small) - before == codes["overloaded"]
    assert "eca_inflight 0.0" in FRESH.get(small.url + "/metrics").text, "every permit was given back"


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
def test_live_is_quick_while_large_images_decode(undisturbed: Service) -> None:
    image, port = slow_image(), undisturbed.url.rpartition(":")[2]
    enough = threading.Event()

    def look() -> float:
        """From a process of its own, so that the callers' threads do not hold it up."""
        watcher = [sys.executable, "-c", WATCHER, port, "1"]
        return float(subprocess.run(watcher, capture_output=True, check=True).stdout)

    def calls() -> set[str]:
        codes = set()
        while not enough.is_set():
            codes.add(call("oip-binary", undisturbed, MODEL, [image], timeout_ms=60_000).code)
        return codes

    before = look()  # 2 ms, or 0.1 s where others keep the machine busy
    with ThreadPoolExecutor(12) as pool:
        callers = [pool.submit(calls) for _ in range(12)]
        try:
            time.sleep(0.5)
            looks = [look() for _ in range(3)]
        finally:
            enough.set()
        codes = set.union(*(one.result() for one in callers))
    assert "ok" in codes
    assert codes <= {"ok", "overloaded"}, "on a busy machine the wait would be too long for some"
    assert min(looks) < 0.05 + before, (before, looks)
