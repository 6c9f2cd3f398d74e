"""What leaves an HTTP connection in one packet. tests/integration/test_connections.py has it on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from eca_service.connections import limited
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn import Config
from uvicorn.server import ServerState

GET = b"%b /%b HTTP/1.1\r\nHost: x\r\n\r\n"
AWAITED = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
Wrote = list[bytes]


class Recorded(asyncio.Transport):
    """A transport that writes down what it is given, piece by piece."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__({"socket": own})
        self.wrote: Wrote = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closed
        self.wrote.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def text(_: Request) -> Response:
    return PlainTextResponse("cat")


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def slowly(_: Request) -> Response:
    async def pieces() -> Any:
        await asyncio.sleep(0.05)
        yield "cat"

    return StreamingResponse(pieces())


def written(act: Callable[[asyncio.Protocol, Wrote], Awaitable[None]]) -> Wrote:
    """What a connection writes while `act` is its caller."""

    async def run() -> Wrote:
        app = Starlette(routes=[Route("/text", text), Route("/echo", echo, methods=["POST"]), Route("/slowly", slowly)])
        config = Config(app, log_config=None)
        config.load()
        with socket.socket() as own:
            transport = Recorded(own)
            connection = limited(1 << 10, 1.0)(config, ServerState(), {})
            connection.connection_made(transport)
            await act(connection, transport.wrote)
            connection.connection_lost(None)
        return transport.wrote

    return asyncio.run(run())


async def until(wrote: Wrote, end: bytes) -> None:
    async def look() -> None:
        while not b"".join(wrote).endswith(end):
            await asyncio.sleep(0)

    await asyncio.wait_for(look(), 5)


@pytest.mark.parametrize("requests", [1, 3])
def test_head_and_body_leave_together(requests: int) -> None:
    async def ask(connection: asyncio.Protocol, wrote: Wrote) -> None:
        connection.data_received(requests * (GET % (b"GET", b"text")))
        while b"".join(wrote).count(b"cat") < requests:
            await asyncio.sleep(0)

    wrote = written(ask)
    assert len(wrote) == requests
    assert all(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\ncat") for answer in wrote)


def test_a_head_does_not_wait_for_a_body_that_is_not_there_yet() -> None:
    async def ask(connection: asyncio.Protocol, wrote: Wrote) -> None:
        connection.data_received(GET % (b"GET", b"slowly"))
        await until(wrote, b"\r\n\r\n")
        assert len(wrote) == 1
        await until(wrote, b"\r\n0\r\n\r\n")

    assert b"cat" not in written(ask)[0]


def test_a_head_without_a_body_leaves() -> None:
    async def ask(connection: asyncio.Protocol, wrote: Wrote) -> None:
        connection.data_received(GET % (b"HEAD", b"text"))
        await until(wrote, b"\r\n\r\n")

    assert len(written(ask)) == 1


def test_who_asks_whether_to_send_is_told_before_the_answer() -> None:
    async def ask(connection: asyncio.Protocol, wrote: Wrote) -> None:
        connection.data_received(AWAITED)
        await until(wrote, b"100 Continue\r\n\r\n")
        connection.data_received(b"ok")
        await until(wrote, b"\r\n\r\nok")

    assert [answer[:12] for answer in written(ask)] == [b"HTTP/1.1 100", b"HTTP/1.1 200"]


def test_a_connection_that_closes_has_sent_all() -> None:
    async def ask(connection: asyncio.Protocol, wrote: Wrote) -> None:
        connection.data_received(b"HEAD /text HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(wrote, b"\r\n\r\n")

    assert written(ask)[0].startswith(b"HTTP/1.1 200")
