"""A connection of uvicorn's with our limits, in front of an application that is made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from eca_service.connections import Connection, limited
from eca_service.gateway import Server

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def connected(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Server]]:
    server = Server(uvicorn.Config(app, http=limited(1 << 15, 10), lifespan="off", ws="none", log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer, server
    finally:
        writer.close()
        server.should_exit = server.force_exit = True
        await serving


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def test_who_leaves_leaves_all_requests_that_he_has_sent() -> None:
    """Of several that he sent at once the second was answered to the end, into a closed connection: `internal`."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        while scope["path"] == "/b" and not left.is_set():
            if (await receive())["type"] == "http.disconnect":
                left.set()
        await answer(send)

    async with connected(app) as (reader, writer, _):
        writer.write(b"".join(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % name for name in (b"a", b"b", b"c")))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        try:
            await asyncio.wait_for(left.wait(), 5)
        finally:
            left.set()


async def test_requests_that_wait_behind_another_are_bytes() -> None:
    """A kilobyte was made of each, and at each answer more were read: one connection took all time and memory."""
    go = asyncio.Event()

    async def app(_: Any, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"abc"
        await go.wait()
        await answer(send)

    async with connected(app) as (reader, writer, server):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" * 10_000)
        await asyncio.sleep(0.5)
        (connection,) = server.server_state.connections
        assert isinstance(connection, Connection)
        assert 0 < len(connection.pipeline) < 2000
        assert len(connection._behind) < 1 << 20
        go.set()
        for _ in range(10_000):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
