"""Unary gRPC calls over one HTTP/2 connection (RFC 9113), on the event loop itself.

gRPC's client hands each call to threads of its own and back, for half as much again of a core and of a lone caller's
time, see tests/load/transport.py. This one knows messages and what fails; for whatever else comes gRPC's client is to
ask again, which tries several times and speaks all of the protocol.
"""

from __future__ import annotations

import asyncio
import logging
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

from eca_service import frames as h2
from eca_service.frames import Frames, Violation, frame, head, settings_of
from eca_service.hpack import block_of, fields_of

logger = logging.getLogger(__name__)
Metadata = Sequence[tuple[str, str]]
CANCEL = struct.pack(">I", 8)
WINDOW = 65535  # as long as nothing else is said
FRAME_BYTES = 1 << 20  # that we take at a time
# No table of header fields: what comes is then to be read without what came before. No pushes.
OURS = struct.pack(">HIHIHIHI", 1, 0, 2, 0, h2.INITIAL_WINDOW, h2.LARGEST, h2.MOST_BYTES, FRAME_BYTES)
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
        self.broken_at = -math.inf  # the event loop's time at which the server broke the protocol
        self._address = address
        fields = ((":path", path), (":authority", address), ("te", "trailers"), ("content-type", "application/grpc"))
        self._head = b"\x83\x86" + block_of(fields)  # POST, http
        self._calls: dict[int, _Call] = {}
        self._unsent: deque[tuple[int, memoryview, bool]] = deque()
        self._next, self._taken = 1, 0
        self._frames = Frames(FRAME_BYTES)
        self._window = self._stream_window = WINDOW
        self._frame_bytes, self._most_streams = 16384, h2.LARGEST

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
        fields = self._head + block_of((("grpc-timeout", timeout), *metadata))
        self._transport.write(frame(h2.HEADERS, h2.END_HEADERS, stream, fields))
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
        line = transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEPT.items():
            if hasattr(socket, option):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        more = struct.pack(">I", h2.LARGEST - WINDOW)
        ours = frame(h2.SETTINGS, 0, 0, OURS) + frame(h2.WINDOW_UPDATE, 0, 0, more)
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + ours)
        self.usable = True

    def connection_lost(self, error: Exception | None) -> None:
        """gRPC's client asks for what was not answered."""
        self.usable = False
        self._unsent.clear()
        for stream in list(self._calls):
            self._end(stream)

    def data_received(self, data: bytes) -> None:
        """Takes what frames are whole now; one that breaks the protocol ends the connection."""
        try:
            for kind, flags, stream, payload in self._frames.of(data, self._next):
                self._take(kind, flags, stream, payload)
                if self._transport.is_closing():
                    return
        except Violation as violation:
            self._break(violation)

    def _break(self, violation: Violation) -> None:
        """The connection ends as if it were lost, and the server is told why (RFC 9113, 5.4.1)."""
        sentence = "%s breaks HTTP/2 (%s): the connection is closed, and gRPC's client asks in its place"
        logger.warning(sentence, self._address, violation)
        self.broken_at = asyncio.get_running_loop().time()
        self._transport.write(frame(h2.GOAWAY, 0, 0, struct.pack(">II", 0, violation.code)))
        self.connection_lost(None)
        self._transport.close()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == h2.DATA:
            self._take_data(flags, stream, payload)
        elif kind == h2.HEADERS:
            if flags & h2.END_STREAM:
                self._take_status(stream, payload if flags & h2.END_HEADERS and not flags & h2.PADDED else b"")
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            self._take_settings(payload)
        elif kind == h2.PING and not flags & h2.ACK:
            self._transport.write(frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.WINDOW_UPDATE:
            self._take_room(stream, int.from_bytes(payload, "big") & h2.LARGEST)
        elif kind == h2.RST_STREAM:
            self._end(stream)
        elif kind == h2.GOAWAY:
            last = int.from_bytes(payload[:4], "big") & h2.LARGEST
            for late in [each for each in self._calls if each > last]:
                self._end(late)
            self.leave()

    def _take_room(self, stream: int, more: int) -> None:
        call = self._calls.get(stream)
        if more + (call.window if call else 0 if stream else self._window) > h2.LARGEST:
            raise Violation(h2.FLOW_CONTROL_ERROR, "WINDOW_UPDATE to more than 2 GiB")
        if call:
            call.window += more
        elif not stream:
            self._window += more
        self._send()

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._taken += len(payload)
        if self._taken > h2.LARGEST // 2:
            self._transport.write(frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if flags & h2.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if call := self._calls.get(stream):
            call.answer += payload
        if flags & h2.END_STREAM:  # without a status
            self._end(stream)

    def _take_status(self, stream: int, block: bytes) -> None:
        call, fields = self._calls.get(stream), fields_of(block)
        if call is None:
            return
        code = CODES.get(fields.get(b"grpc-status", b""))
        if code is grpc.StatusCode.OK and call.answer[:5] == b"\0" + struct.pack(">I", max(0, len(call.answer) - 5)):
            self.unknown = -h2.LARGEST
            self._end(stream, bytes(memoryview(call.answer)[5:]))
        elif code is None or code in AGAIN or code is grpc.StatusCode.OK:
            self.unknown += code not in AGAIN
            self._end(stream)
        else:
            self._end(stream, _error(code, unquote(fields.get(b"grpc-message", b"").decode("ascii", "replace"))))

    def _take_settings(self, payload: bytes) -> None:
        said = settings_of(payload)
        window = said.get(h2.INITIAL_WINDOW, self._stream_window)
        for call in self._calls.values():
            call.window += window - self._stream_window
        self._stream_window = window
        self._frame_bytes = said.get(h2.MOST_BYTES, self._frame_bytes)
        self._most_streams = said.get(h2.MOST_STREAMS, self._most_streams)
        self._transport.write(frame(h2.SETTINGS, h2.ACK, 0, b""))
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
                flags = h2.END_STREAM if whole and last else 0
                front = head(size, h2.DATA, flags, stream)
                # asyncio's own loop, from Python 3.12 on, never gets rid of a part that is empty
                self._transport.writelines([front, rest[:size]] if size else [front])
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
            self._transport.write(frame(h2.RST_STREAM, 0, stream, CANCEL))
            self._end(stream)

    def _too_late(self, stream: int) -> None:
        if not (future := self._calls[stream].future).done():  # its caller may leave in that very moment
            future.set_exception(_error(grpc.StatusCode.DEADLINE_EXCEEDED, "it took too long"))


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
