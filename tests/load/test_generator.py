"""What the generator plans, sends and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click
import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from tests.integration.conftest import Service
from tests.load import goodput, once
from tests.load.arrivals import Process, planned
from tests.load.generator import closed_loop, open_loop
from tests.load.generator_cost import cost, trivial_server
from tests.load.photographs import made, photographs
from tests.load.protocols import INFER, Http, Reply, Way, host_and_port, require_loopback, stages_of


class Stalling(Way):
    """Answers at once, one at a time, but for a stall of `stall_s` that the third request begins."""

    def __init__(self, stall_s: float) -> None:
        self._turn = asyncio.Lock()
        self._stall_s = stall_s
        self.asked = 0

    async def send(self, model: str, image: int) -> Reply:
        async with self._turn:
            self.asked += 1
            if self.asked == 3:
                await asyncio.sleep(self._stall_s)
        return Reply("ok")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("process", ["poisson", "constant"])
def test_planned_starts(process: Process) -> None:
    starts = planned(process, 200, 20, 100_000, 1)
    gaps = np.diff(starts)
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] < 20
    assert len(starts) == pytest.approx(4000, abs=300)
    assert gaps.std() / gaps.mean() == pytest.approx(1 if process == "poisson" else 0, abs=0.1)
    assert planned(process, 200, 20, 7, 1) == starts[:7]
    assert len(planned(process, 1e9, 3600, 7, 1)) == 7, "planned without room for 3.6 * 10^12"


async def test_a_stall_shows_in_open_load_and_hides_in_closed_load() -> None:
    starts = planned("constant", 100, 1.0, 1000, 1)
    seen = await open_loop(Stalling(0.5), "m", starts, 1)
    assert seen.sent == len(seen.latencies_s) == 100
    late = sum(latency > 0.05 for latency in seen.latencies_s)
    assert late > 35, "all that were planned during the stall waited"
    hidden = await closed_loop(Stalling(0.5), "m", 1, 0.7, 1)
    assert sum(latency > 0.05 for latency in hidden.latencies_s) < 5


async def test_open_load_that_is_cut_off_waits_for_no_planned_start() -> None:
    load = asyncio.ensure_future(open_loop(Stalling(0), "m", [0.0, 30.0], 1))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert time.monotonic() - began < 10


class InTurn(Stalling):
    """Answers one request after the other, those that came last first where `newest`."""

    def __init__(self, newest: bool) -> None:
        super().__init__(0)
        self._newest = newest
        self._waiting: list[asyncio.Future[None]] = []

    async def send(self, model: str, image: int) -> Reply:
        if not self._waiting:
            asyncio.get_running_loop().call_later(0.001, self._answer)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future
        return Reply("ok")

    def _answer(self) -> None:
        self._waiting.pop(-1 if self._newest else 0).set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_later(0.001, self._answer)


async def test_answers_to_others_tell_the_order_in_which_requests_are_answered() -> None:
    fair = await closed_loop(InTurn(newest=False), "m", 4, 30, 1, most=50)
    assert fair.meanwhile == [0, 1, 2] + 47 * [3]
    unfair = await closed_loop(InTurn(newest=True), "m", 4, 30, 1, most=50)
    assert sorted(unfair.meanwhile) == [*47 * [0], 47, 48, 49]


async def test_load_is_bounded_and_waits_no_longer_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.load.generator.PATIENCE_S", 0.2)
    few = await closed_loop(Stalling(0), "m", 4, 30, 1, most=50)
    assert few.sent == len(few.latencies_s) == 50
    stuck = await open_loop(Stalling(60), "m", planned("constant", 100, 0.1, 1000, 1), 1)
    assert stuck.failures == {"no answer": 8}
    assert len(stuck.latencies_s) == 2


async def serving(answer: bytes, use: Callable[[str], Awaitable[None]]) -> None:
    """A server on loopback that reads a little and answers `answer`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 20)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "http 429"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "connection: lost"),
        (b"hello\r\n\r\n", "no http"),
    ],
)
async def test_failures_are_counted_by_their_kind(answer: bytes, code: str) -> None:
    async def use(url: str) -> None:
        way = Http(url, [b"x"])
        block = await closed_loop(way, "m", 2, 5, 1, most=6)
        assert block.failures == {code: 6}
        assert not block.latencies_s
        await way.close()

    await serving(answer, use)


@contextmanager
def trivial_grpc_server() -> Iterator[int]:
    """The port of a server that answers nothing to everything."""
    answer = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    server = grpc.server(ThreadPoolExecutor(1))
    _, service, method = INFER.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: answer}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("way", ["http", "grpc"])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_once_takes_either_form_of_an_address_whatever_the_proxy(
    way: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with trivial_server() if way == "http" else trivial_grpc_server() as port:
        given = ["--url", f"{scheme}127.0.0.1:{port}", "--way", way, "--callers", "1", "--most", "1", "--model", "m"]
        done = CliRunner().invoke(once.main, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output


async def test_goodput_is_of_the_time_in_which_requests_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.load.goodput.MOST_REQUESTS", 100)
    with trivial_grpc_server() as port:
        service = Service(*(cast(Any, None), "", Path()), triton_port=0, grpc_port=port)
        async with goodput.Generator(service, "m", 0.4) as generator:
            found = await generator.offer(50, 20)
            with pytest.raises(click.ClickException, match="1000 requests/s are 100 within"):
                await generator.offer(1000, 20)
    assert set(found.codes) == {"ok"}
    assert found.goodput_per_s == pytest.approx(found.offered_per_s, rel=0.4), "all were answered in time"


async def test_stages_are_read_and_the_generator_costs_little() -> None:
    images = made(3, ((320, 240),))
    with trivial_server() as port:
        found = await cost(port, images, 0.5)
        way = Http(f"http://127.0.0.1:{port}", images)
        block = await closed_loop(way, "m", 2, 1, len(images), most=20)
        await way.close()
    assert block.stages["infer"] == [1.0] * 20
    assert found.processor_us < 2000, "it would be the bottleneck of what it measures"


async def test_a_proxy_may_add_to_what_the_stages_took() -> None:
    assert stages_of("decode;dur=1.5, queue; dur=0, total;dur=2") == {"decode": 1.5, "queue": 0, "total": 2}
    timing = b'Server-Timing: infer;dur=3\r\nServer-Timing: edge;dur=5;desc="\xe9", cache;desc=hit, odd;dur=x'

    async def use(url: str) -> None:
        way = Http(url, [b"x"])
        block = await closed_loop(way, "m", 1, 5, 1, most=1)
        assert (block.failures, block.stages) == ({}, {"infer": [3], "edge": [5]})
        await way.close()

    await serving(b"HTTP/1.1 200 OK\r\n" + timing + b"\r\nContent-Length: 2\r\n\r\n{}", use)


def test_a_file_that_is_no_image_is_told_before_anything_is_built(tmp_path: Path) -> None:
    for number, data in enumerate(made(3, ((320, 240),))):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    assert photographs(tmp_path)[0] == made(3, ((320, 240),))
    (tmp_path / "1.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(click.UsageError, match=r"1\.jpg cannot be sent: "):
        photographs(tmp_path)


def test_load_goes_to_loopback_unless_told() -> None:
    require_loopback("http://127.0.0.1:8080")
    require_loopback("localhost:8081")
    for url in ("http://10.0.0.1:80", "example.org:80"):
        with pytest.raises(ValueError, match="another machine"):
            require_loopback(url)
        require_loopback(url, host_and_port(url)[0])
    assert host_and_port("[::1]:80") == ("::1", 80)
    for url in ("dns:///192.0.2.1:81", "unix:/tmp/x", "https://127.0.0.1", "http://", ""):
        with pytest.raises(ValueError, match=r"neither|TLS"):
            require_loopback(url)
    refused = CliRunner().invoke(once.main, ["--url", "http://192.0.2.1:80", "--model", "m"])
    assert refused.exit_code == 2
    assert "--target" in refused.output
