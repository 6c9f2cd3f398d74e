"""One connection, made anew beside the calls."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator

import pytest
from eca_service import reconnecting
from eca_service.http2 import Connection
from eca_service.reconnecting import Reconnecting

from tests.unit.made_http2 import OK, PATH, Peer, echo, usable


@pytest.fixture
async def line() -> AsyncIterator[Reconnecting]:
    made = Reconnecting(PATH)
    yield made
    await made.close(0)


async def test_a_connection_that_is_lost_is_made_anew(line: Reconnecting) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    assert line.usable() is None
    async with echo() as first, echo(delay_s=0.3) as second:
        line.to(first)
        connection = await usable(line)
        line.to(second)
        assert not connection.usable
        assert connection._transport.is_closing(), "nothing runs there"
        slow = (await usable(line)).call(b"slow", 20)
        line.to(first)
        kept = await usable(line)
        assert await kept.call(b"x", 20) == b"x"
        assert await slow == b"slow", "it ends in peace"
        kept._transport.abort()
        await asyncio.sleep(0.01)
        assert line.usable() is None, "nobody waits for the new one"
        assert await (await usable(line)).call(b"x", 20) == b"x"
        line.to(second)
        line.to(None)
        await asyncio.sleep(0.1)
        assert line.usable() is None
        assert line._connection is None, "what was being made is not kept"
        line.to(first)
        await usable(line)
    for _ in range(3):
        await asyncio.sleep(0.05)
        assert line.usable() is None, "nobody listens there"
    gc.collect()
    assert not failures, "which is no line in the log"


async def test_calls_that_come_meanwhile_make_no_second_one(line: Reconnecting) -> None:
    peers: list[Peer] = []

    def peer() -> Peer:
        peers.append(Peer())
        return peers[-1]

    async with await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0) as server:
        line.to("127.0.0.1:{1}".format(*server.sockets[0].getsockname()))
        for _ in range(5):
            assert line.usable() is None
        connection = await usable(line)
        call = connection.call(b"x", 20)
        peers[0].answer((await peers[0].request())[0], b"y")
        assert await call == b"y"
        assert len(peers) == 1
        peers[0].transport.abort()


async def test_what_runs_may_end_before_it_is_closed(line: Reconnecting) -> None:
    async with echo(delay_s=0.3) as address:
        line.to(address)
        connection = await usable(line)
        call = connection.call(b"x", 20)
        await line.close(10)
        assert call.done()
        assert await call == b"x"
        assert connection._transport.is_closing()


async def test_who_does_not_answer_is_not_waited_for(line: Reconnecting, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is gone without a word, as a new one is known."""
    monkeypatch.setattr(reconnecting, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        line.to("127.0.0.1:{1}".format(*full.getsockname()))
        await asyncio.sleep(0)
        async with echo() as address:
            line.to(address)
            assert await (await asyncio.wait_for(usable(line), 10)).call(b"x", 20) == b"x"
        others = asyncio.all_tasks()
        line.to("127.0.0.1:{1}".format(*full.getsockname()))
        await asyncio.sleep(0)
        await line.close(0)
        assert line.usable() is None
        assert asyncio.all_tasks() <= others, "it is over at the end"


@pytest.mark.parametrize("understood", [False, True])
async def test_whom_we_never_understand_is_left_to_grpc(line: Reconnecting, understood: bool) -> None:
    """Once is enough; and in place of a server that has gone another may have come."""
    peers: list[Peer] = []

    def peer() -> Peer:
        peers.append(Peer())
        return peers[-1]

    async def ask(connection: Connection, status: bytes) -> bytes | None:
        call = connection.call(b"x", 20)
        peers[-1].answer((await peers[-1].request())[0], b"y", status)
        return await call

    server = await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0)
    line.to(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    connection = await usable(line)
    if understood:
        assert await ask(connection, OK) == b"y"
    for _ in range(reconnecting.MOST_UNKNOWN):
        assert await ask(connection, b"") is None
    assert line.usable() is (connection if understood else None)
    peers[-1].transport.abort()
    while connection.usable:
        await asyncio.sleep(0.01)
    assert await ask(await usable(line), OK) == b"y"
    peers[-1].transport.abort()
    server.close()


async def test_who_breaks_the_protocol_is_left_to_grpc_for_a_while(
    line: Reconnecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time is a line in the log."""
    peers: list[Peer] = []

    def peer() -> Peer:
        peers.append(Peer())
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0)
    line.to(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    call = (await usable(line)).call(b"x", 20)
    await peers[0].request()
    peers[0].transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert await call is None
    for _ in range(3):
        assert line.usable() is None
        await asyncio.sleep(0.05)
    assert len(peers) == 1
    monkeypatch.setattr(reconnecting, "AGAIN_S", 0.0)
    await usable(line)
    server.close()


async def test_a_server_that_cannot_take_a_call_is_understood(line: Reconnecting) -> None:
    """As one that has not loaded its models yet."""
    async with echo() as address:
        line.to(address)
        connection = await usable(line)
        for _ in range(reconnecting.MOST_UNKNOWN):
            assert await connection.call(b"status NOT_FOUND", 20) is None
        assert line.usable() is connection
