"""A connection of uvicorn's with our limits, in front of an application that is made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from eca_service.connections import limited
from eca_service.gateway import Server


async def test_who_leaves_leaves_all_requests_that_he_has_sent() -> None:
    """Of several that he sent at once the second was answered to the end, into a closed connection: `internal`."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        while scope["path"] == "/b" and not left.is_set():
            if (await receive())["type"] == "http.disconnect":
                left.set()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = Server(uvicorn.Config(app, http=limited(1 << 15, 10), lifespan="off", ws="none", log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"".join(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % name for name in (b"a", b"b", b"c")))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    try:
        await asyncio.wait_for(left.wait(), 5)
    finally:
        left.set()
        server.should_exit = server.force_exit = True
        await serving
