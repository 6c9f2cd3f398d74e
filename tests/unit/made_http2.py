"""Servers of HTTP/2: gRPC's own, that says what it is told, and one that does what gRPC's seldom do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from eca_service.frames import DATA, END_HEADERS, END_STREAM, FRAME, HEADERS, SETTINGS, WINDOW_UPDATE
from eca_service.http2 import Connection
from eca_service.reconnecting import Reconnecting

PATH = "/echo/Echo"
FIRST = b"\x20\x88@\x0ccontent-type\x10application/grpc"
OK = b"@\x0bgrpc-status\x010"
LIMIT = 65535


class Peer(asyncio.Protocol):
    """A server of one connection: `frames` are those that came, but for settings and the connection's window, of which
    `given` are all bytes.
    """

    def __init__(self) -> None:
        self.frames: asyncio.Queue[tuple[int, int, int, bytes]] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.given = 0
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send(SETTINGS, 0, 0)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self._rest = (self._rest + data).removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while len(self._rest) >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(self._rest)
            end = FRAME.size + (high << 16 | low)
            if len(self._rest) < end:
                return
            frame, self._rest = self._rest[FRAME.size : end], self._rest[end:]
            if (kind, stream) == (WINDOW_UPDATE, 0):
                self.given += int.from_bytes(frame, "big")
            elif kind != SETTINGS:
                self.frames.put_nowait((kind, flags, stream, frame))

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.transport.write(FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload)

    def answer(self, stream: int, message: bytes, status: bytes = OK) -> None:
        self.send(HEADERS, END_HEADERS, stream, FIRST)
        self.send(DATA, 0, stream, framed(message))
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, status)

    async def next(self, kind: int) -> tuple[int, int, bytes]:
        """Flags, stream and payload of the next frame, which is of that kind."""
        got, flags, stream, payload = await asyncio.wait_for(self.frames.get(), 10)
        assert got == kind
        return flags, stream, payload

    async def request(self) -> tuple[int, bytes]:
        """The next request's stream and message, which comes in one frame after its length."""
        _, stream, _ = await self.next(HEADERS)
        await self.next(DATA)
        flags, _, message = await self.next(DATA)
        assert flags == END_STREAM
        return stream, message


def framed(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Peer, Connection]]:
    loop, peer = asyncio.get_running_loop(), Peer()
    server = await loop.create_server(lambda: peer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, connection = await loop.create_connection(lambda: Connection("somebody", PATH), "127.0.0.1", port)
    try:
        yield peer, connection
    finally:
        await connection.close(0)
        peer.transport.abort()
        server.close()


@asynccontextmanager
async def echo(**delays: float) -> AsyncIterator[str]:
    """gRPC's own server: it answers with the message, after so many seconds; or with the status that is named there."""

    async def answer(message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if message.startswith(b"status "):
            await context.abort(grpc.StatusCode[message[7:].decode()], "why: 100 % of \u00fc")
        await asyncio.sleep(delays.get("delay_s", 0))
        return message

    handler = grpc.method_handlers_generic_handler("echo", {"Echo": grpc.unary_unary_rpc_method_handler(answer)})
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def usable(line: Reconnecting) -> Connection:
    """Its connection, once it is made."""
    while not (connection := line.usable()):
        await asyncio.sleep(0.01)
    return connection
