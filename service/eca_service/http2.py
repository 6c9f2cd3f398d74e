"""Unary gRPC calls over one HTTP/2 connection (RFC 9113), on the event loop itself.

gRPC's client hands each call to threads of its own and back, for half as much again of a core and of a lone caller's
time, see tests/load/transport.py. This one knows messages and what fails; for whatever else comes gRPC's client is to
ask again, which tries several times and speaks all of the protocol.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import unquote

import grpc

from eca_service.hpack import block_of, fields_of

Metadata = Sequence[tuple[str, str]]
FRAME = struct.Struct(">BHBBI")  # 24 bits of length, kind, flags, stream
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8
CANCEL = struct.pack(">I", 8)
MOST_STREAMS, INITIAL_WINDOW, MOST_BYTES = 3, 4, 5  # settings
LARGEST = (1 << 31) - 1
WINDOW = 65535  # as long as nothing else is said
FRAME_BYTES = 1 << 20  # that we take at a time
# No table of header fields: what comes is then to be read without what came before. No pushes.
OURS = struct.pack(">HIHIHIHI", 1, 0, 2, 0, INITIAL_WINDOW, LARGEST, MOST_BYTES, FRAME_BYTES)
LAST_STREAM = 1 << 30  # then a new connection begins to count
# The kernel notices in three seconds that a server was cut off without a word. Where we asked by PING, gRPC's servers
# would close the connection: by default they bear two in five minutes, while a call works.
KEPT = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_USER_TIMEOUT": 3000}  # as far as the system has them
CODES = {str(code.value[0]).encode(): code for code in grpc.StatusCode}
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}  # another server may answer, or this one in a moment


@dataclass(slots=True)
class _Call:
    future: asyncio.Future[bytes | None]
    timer: asyncio.TimerHandle
    window: int  # bytes that the server takes of it now
    answer: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """Calls of the method at `path`, to the server that is connected to: `address` is what it is told as its name.

    `usable` as long as it takes calls.
    """

    def __init__(self, address: str, path: str) -> None:
        self.usable = False
        self.unknown = 0  # answers that were not understood, until one is
        fields = ((":path", path), (":authority", address), ("te", "trailers"), ("content-type", "application/grpc"))
        self._head = b"\x83\x86" + block_of(fields)  # POST, http
        self._calls: dict[int, _Call] = {}
        self._unsent: deque[tuple[int, memoryview, bool]] = deque()
        self._next, self._received, self._taken = 1, b"", 0
        self._window = self._stream_window = WINDOW
        self._frame_bytes, self._most_streams = 16384, LARGEST

    def call(self, message: bytes, timeout_s: float, metadata: Metadata = ()) -> asyncio.Future[bytes | None]:
        """What the server answers to one serialised `message`, within `timeout_s` seconds; `metadata` are ASCII texts.

        The result is the answer's message, or None where gRPC's client has to find out; the future raises AioRpcError
        for a status that asking again does not change, and for DEADLINE_EXCEEDED. Cancelling it ends the call for the
        server too. To be called while the connection is `usable`.
        """
        stream, self._next = self._next, self._next + 2
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        if len(self._calls) >= self._most_streams:
            future.set_result(None)
            return future
        self._calls[stream] = _Call(future, loop.call_later(timeout_s, self._too_late, stream), self._stream_window)
        future.add_done_callback(partial(self._left, stream))
        timeout = f"{min(math.ceil(1000 * timeout_s), 99_999_999)}m"
        head = self._head + block_of((("grpc-timeout", timeout), *metadata))
        self._transport.write(_frame(HEADERS, END_HEADERS, stream, head))
        self._unsent.append((stream, memoryview(b"\0" + struct.pack(">I", len(message))), False))
        self._unsent.append((stream, memoryview(message), True))
        self._send()
        if self._next > LAST_STREAM:
            self.leave()
        return future

    def leave(self) -> None:
        """Takes no more calls, and closes when those that run have ended."""
        self.usable = False
        if not self._calls:
            self._transport.close()

    async def close(self, patience_s: float) -> None:
        """Closes; calls that still run after `patience_s` are cancelled."""
        if running := [call.future for call in self._calls.values()]:
            await asyncio.wait(running, timeout=patience_s)
            for future in running:
                future.cancel()
        self.leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says who we are (RFC 9113, 3.4)."""
        self._transport = cast(asyncio.Transport, transport)
        ours = transport.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEPT.items():
            if hasattr(socket, option):
                ours.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        more = struct.pack(">I", LARGEST - WINDOW)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, OURS) + _frame(WINDOW_UPDATE, 0, 0, more)
        self._transport.write(preface)
        self.usable = True

    def connection_lost(self, error: Exception | None) -> None:
        """gRPC's client asks for what was not answered."""
        self.usable = False
        self._unsent.clear()
        for stream in list(self._calls):
            self._end(stream)

    def data_received(self, data: bytes) -> None:
        """Whole frames are taken, the rest waits for more."""
        data, at = self._received + data, 0
        while len(data) - at >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            start, size = at + FRAME.size, high << 16 | low
            if size > FRAME_BYTES:
                self._transport.abort()
                return
            if len(data) < start + size:
                break
            at = start + size
            self._take(kind, flags, stream & LARGEST, data[start:at])
        self._received = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._take_data(flags, stream, payload)
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._take_status(stream, payload if flags & END_HEADERS and not flags & PADDED else b"")
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == PING and not flags & ACK:
            self._transport.write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big") & LARGEST
            if call := self._calls.get(stream):
                call.window += more
            elif not stream:
                self._window += more
            self._send()
        elif kind == RST_STREAM:
            self._end(stream)
        elif kind == GOAWAY:
            last = int.from_bytes(payload[:4], "big") & LARGEST
            for late in [each for each in self._calls if each > last]:
                self._end(late)
            self.leave()

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._taken += len(payload)
        if self._taken > LARGEST // 2:
            self._transport.write(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if call := self._calls.get(stream):
            call.answer += payload
        if flags & END_STREAM:  # without a status
            self._end(stream)

    def _take_status(self, stream: int, block: bytes) -> None:
        call, fields = self._calls.get(stream), fields_of(block)
        if call is None:
            return
        code = CODES.get(fields.get(b"grpc-status", b""))
        if code is grpc.StatusCode.OK and call.answer[:5] == b"\0" + struct.pack(">I", len(call.answer) - 5):
            self.unknown = -LARGEST
            self._end(stream, bytes(memoryview(call.answer)[5:]))
        elif code is None or code in AGAIN or code is grpc.StatusCode.OK:
            self.unknown += code not in AGAIN
            self._end(stream)
        else:
            self._end(stream, _error(code, unquote(fields.get(b"grpc-message", b"").decode("ascii", "replace"))))

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif name == MOST_BYTES:
                self._frame_bytes = value
            elif name == MOST_STREAMS:
                self._most_streams = value
        self._transport.write(_frame(SETTINGS, ACK, 0, b""))
        self._send()

    def _send(self) -> None:
        """What the server has room for, in the calls' order."""
        while self._unsent:
            stream, rest, last = self._unsent[0]
            if call := self._calls.get(stream):
                size = min(len(rest), self._window, call.window, self._frame_bytes)
                if size <= 0 < len(rest):
                    return
                whole = size == len(rest)
                flags = END_STREAM if whole and last else 0
                self._transport.writelines([FRAME.pack(size >> 16, size & 0xFFFF, DATA, flags, stream), rest[:size]])
                self._window -= size
                call.window -= size
                if not whole:
                    self._unsent[0] = stream, rest[size:], last
                    continue
            self._unsent.popleft()

    def _end(self, stream: int, result: bytes | grpc.aio.AioRpcError | None = None) -> None:
        if call := self._calls.pop(stream, None):
            call.timer.cancel()
            if not call.future.done():
                if isinstance(result, BaseException):
                    call.future.set_exception(result)
                else:
                    call.future.set_result(result)
            if not (self.usable or self._calls):
                self._transport.close()
            self._send()  # what waited behind it

    def _left(self, stream: int, future: asyncio.Future[bytes | None]) -> None:
        """Nobody waits for it any more, unless it has ended; by then it may be that nobody wants to know how."""
        if not future.cancelled():
            future.exception()  # counts as looked at
        if stream in self._calls:
            self._transport.write(_frame(RST_STREAM, 0, stream, CANCEL))
            self._end(stream)

    def _too_late(self, stream: int) -> None:
        if not (future := self._calls[stream].future).done():  # its caller may leave in that very moment
            future.set_exception(_error(grpc.StatusCode.DEADLINE_EXCEEDED, "it took too long"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
