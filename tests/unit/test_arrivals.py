"""What gRPC calls whose messages do not come may take: no client does that, so the frames are made by hand."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from eca_service import arrivals, grpc_server
from eca_service.arrivals import Arrivals
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.grpc_server import MAX_STREAMS, GrpcServer
from eca_service.peers import Peers
from eca_service.settings import Settings
from eca_service.triton.server import free_port

INFER, HEALTH = "/inference.GRPCInferenceService/ModelInfer", "/grpc.health.v1.Health/Check"
LIVE, REFLECTION = "/inference.GRPCInferenceService/ServerLive", "/grpc.reflection.v1alpha.ServerReflection/"
DATA, HEADERS, SETTINGS, PING, END_STREAM, END_HEADERS, ACK = 0, 1, 4, 6, 1, 4, 1  # RFC 9113, 6
MAX_CONCURRENT_STREAMS = 3  # 6.5.2
OK, INVALID, EXHAUSTED, LATE = b"0", b"3", b"8", b"4"
PATIENCE_S = 30
WHOLE, HALF = bytes(5), b"\0" + struct.pack(">I", 1000) + bytes(10)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Call:
    """A call on a connection of its own; `begin` sends `data` of its message."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def begin(self, path: str, data: bytes = b"") -> Call:
        """Its head and `data`, nothing further."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        fields = (
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
            *(("te", "trailers"), ("content-type", "application/grpc")),
        )
        texts = ([bytes([len(text)]) + text.encode() for text in field] for field in fields)
        head = b"".join(b"\0" + name + value for name, value in texts)
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        self._writer.write(frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, 0, 1, data))
        return self

    def end(self, data: bytes = b"") -> None:
        """The rest of the message."""
        self._writer.write(frame(DATA, END_STREAM, 1, data))

    async def status(self) -> bytes:
        """gRPC's status, as its number's digit."""
        await self.until(b"grpc-status\x01")
        return await self._reader.readexactly(1)

    async def ping(self) -> None:
        """Asks whether the service is still there, and awaits its answer."""
        self._writer.write(frame(PING, 0, 0, bytes(8)))
        await self.until(frame(PING, ACK, 0, bytes(8)))

    async def until(self, text: bytes) -> None:
        """Reads until it has come."""
        await asyncio.wait_for(self._reader.readuntil(text), PATIENCE_S)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def serving(folder: Path, **settings: object) -> AsyncIterator[tuple[Callable[[], Call], Core]]:
    """Makes calls to a service without models, which lets two slow messages come."""
    port, calls = free_port(), []
    given = {"max_body_bytes": 1 << 20, "max_inflight_bytes": 2 << 20, **settings}
    core = Core(Settings(repository=folder, grpc_port=port, **given), Peers())  # type: ignore[arg-type]
    server = GrpcServer(core)
    await server.start()

    def call() -> Call:
        calls.append(Call(port))
        return calls[-1]

    try:
        yield call, core
    finally:
        for made in calls:
            made.close()
        await server._server.stop(None)


@pytest.mark.parametrize("path", [INFER, HEALTH, LIVE, REFLECTION + "ServerReflectionInfo"])
async def test_of_messages_that_come_slowly_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(arrivals, "QUICK_S", 0.2)
    async with serving(tmp_path, body_timeout_ms=4000) as (call, _):
        calls = [await call().begin(path, HALF) for _ in range(5)]
        slow = {asyncio.create_task(one.status()): one for one in calls}
        ended: set[asyncio.Task[bytes]] = set()
        while len(ended) < 3:
            done, _ = await asyncio.wait(slow.keys() - ended, return_when=asyncio.FIRST_COMPLETED)
            ended |= done
        assert {task.result() for task in ended} == {EXHAUSTED}
        whole, late = slow.keys() - ended
        slow[whole].end(bytes(990))
        assert await whole == INVALID, "it is no message"
        assert await late == LATE, "nobody has all the time in the world"


@pytest.mark.parametrize("settings", [{"deadline_ms": 500}, {"body_timeout_ms": 500}], ids=["deadline", "body"])
async def test_a_message_has_the_time_of_a_body_and_no_more_than_its_answer(
    tmp_path: Path, settings: dict[str, int]
) -> None:
    async with serving(tmp_path, **{"deadline_ms": 60_000, "body_timeout_ms": 60_000} | settings) as (call, _):
        assert await (await call().begin(INFER, HALF)).status() == LATE


async def test_health_is_answered_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "QUICK_S", 0.1)
    async with serving(tmp_path) as (call, _):
        for path in [INFER, HEALTH] * 10:
            await call().begin(path, HALF)
        await asyncio.sleep(0.5)
        asked = await call().begin(HEALTH, WHOLE)
        asked.end()
        assert await asked.status() == OK


async def test_who_is_not_let_in_need_not_send(tmp_path: Path) -> None:
    async with serving(tmp_path, max_inflight_images=2) as (call, core):

        async def until(inside: int) -> None:
            while core.admission.requests != inside:
                await asyncio.sleep(0.01)

        first = await call().begin(INFER, HALF)
        await call().begin(INFER, HALF)
        await asyncio.wait_for(until(2), PATIENCE_S)
        assert await (await call().begin(INFER, HALF)).status() == EXHAUSTED
        first.close()
        await asyncio.wait_for(until(1), PATIENCE_S)
        await call().begin(INFER, HALF)
        await asyncio.wait_for(until(2), PATIENCE_S)


async def test_a_call_without_a_message_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (call, _):
        for path in (INFER, HEALTH, LIVE):
            empty = await call().begin(path)
            empty.end()
            assert await empty.status() == INVALID, path


@pytest.mark.parametrize(("size", "status"), [(1 << 20, "INVALID_ARGUMENT"), (5 << 18, "RESOURCE_EXHAUSTED")])
async def test_a_message_may_have_the_body_s_size_and_something_around_it(
    tmp_path: Path, size: int, status: str
) -> None:
    async with (
        serving(tmp_path) as (_, core),
        grpc.aio.insecure_channel(f"127.0.0.1:{core.settings.grpc_port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await channel.unary_unary(INFER)(b"\xff" * (size + 100))  # it is no message
        assert told.value.code().name == status


async def test_callers_are_told_how_many_calls_a_connection_may_have(tmp_path: Path) -> None:
    async with serving(tmp_path) as (call, _):
        await (await call().begin(HEALTH)).until(struct.pack(">HI", MAX_CONCURRENT_STREAMS, MAX_STREAMS))


@pytest.mark.parametrize("idle", [False, True])
async def test_callers_may_look_for_the_service_also_between_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """gRPC by itself ends a connection at its fourth ping within some minutes."""
    monkeypatch.setattr(grpc_server, "PING_MS", 100)
    async with serving(tmp_path) as (call, _):
        asking = await call().begin(HEALTH, WHOLE if idle else HALF)
        if idle:
            assert await asking.status() == OK
        for _ in range(8):
            await asking.ping()
            await asyncio.sleep(0.2)


async def test_who_is_quick_is_not_counted() -> None:
    shown, loop = Arrivals(1), asyncio.get_running_loop()

    async def read() -> bytes:
        await asyncio.sleep(0.01)
        return b"x"

    async def none() -> object:
        return grpc.aio.EOF

    assert await asyncio.gather(*(shown.only(read, loop.time() + 5) for _ in range(100))) == [b"x"] * 100
    assert await shown.message(none, loop.time() + 5) is None
    with pytest.raises(ServiceError, match="before its message was whole"):
        await shown.only(none, loop.time() + 5)
