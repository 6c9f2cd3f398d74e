"""One HTTP connection: what it may take before it counts as a request, so that slow and endless callers cost little."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from eca_service.errors import ServiceError, problem, refusal
from eca_service.journal import Entry

SPOILED = "eca_spoiled"  # in a request's scope, where its body cannot be read to its end
ABORT = "eca_abort"  # there too: what cuts its connection off, and drops what waits there for the caller
LOOK_S = 0.001  # before a caller is given up, what it has sent is read: the process may have stood still
PIECE_BYTES = 64 << 10  # parsed at a time: two thousand heads at most; of smaller ones a photograph has many
LINGER_S = 2.0  # a caller that is answered before it has sent all may go on for so long, to see the answer


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which bounds neither the size of a request's head nor the time that it takes to come."""

    max_head_bytes = 32 << 10
    head_timeout_s = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller that says nothing is given up like one that says it slowly; the kernel gives up one who takes
        nothing of his answers.
        """
        super().connection_made(transport)
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:  # Linux has it
            idle_ms = 1000 * self.timeout_keep_alive
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, idle_ms)
        self._closing: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None  # those that were sent behind it wait in `pipeline`
        self._refused = False
        self._fault = "this is not an HTTP request"
        self._heard = False  # a head is fed once more, see _unsupported_upgrade_warning
        self._in_head = True
        self._heads = self._head_bytes = self._fields_bytes = 0
        self._fed = self._behind = b""  # what is being parsed, and what waits to be
        self._again = 0  # bytes at the end of `_fed` that are to be parsed once more
        self.flow = _Flow(self, transport)
        self._began = time.perf_counter()
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks, and tells the request that is being answered: uvicorn tells the one that came last."""
        self._head_timer.cancel()
        if self._closing:
            self._closing.cancel()
        super().connection_lost(exc)
        if self._answering and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Requests behind the one that is being answered wait as bytes, and no more are read: uvicorn reads on at each
        answer, and makes objects of thousands.
        """
        self._behind += data
        self._feed()

    def _feed(self) -> None:
        """Parses what has come, until a request waits behind another."""
        data, at = self._behind, 0
        while at < len(data) and not self.pipeline and not self._refused:
            self._fed, self._again = data[at : at + PIECE_BYTES], 0
            self._parse(self._fed)
            at += len(self._fed) - self._again
        self._behind = b"" if self._refused else data[at:]
        if self._behind:
            self.flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        """Counts the bytes of a head for as long as it is not complete."""
        heads, in_head = self._heads, self._in_head
        super().data_received(data)
        if self._in_head and heads == self._heads and not self._refused:
            self._head_bytes += len(data) if in_head else 1  # behind a body: the parser does not say how much is a head
            if self._head_bytes > self.max_head_bytes:
                self.send_400_response("")

    def _unsupported_upgrade_warning(self) -> None:
        """To another protocol, such as h2c, nobody changes (RFC 9110, 7.8), and the request is answered in this one.

        llhttp reads no body behind such a head; a parser that was told only of the body's size does.
        https://github.com/Kludex/uvicorn/issues/2722
        """
        ended = sys.exc_info()[1]
        assert isinstance(ended, httptools.HttpParserUpgrade)
        fields = [(name, value) for name, value in self.headers if name in {b"content-length", b"transfer-encoding"}]
        self.parser, self._heard = httptools.HttpRequestParser(self), True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % field for field in fields))
        self._heard = False
        self._again = len(self._fed) - ended.args[0]

    def on_message_begin(self) -> None:
        """Another head begins."""
        if self._heard:
            return
        super().on_message_begin()
        self._began = time.perf_counter()
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_slow)
        self._in_head = True
        self._head_bytes = self._fields_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; many come in one piece of data."""
        if self._heard:
            return
        self._fields_bytes += len(name) + len(value) + 4
        if self._fields_bytes > self.max_head_bytes:
            raise ValueError("the head is too large")  # ends the parsing, see send_400_response
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: from now on the request's own limits hold."""
        if self._heard:
            return
        self._fields_bytes += len(self.url)
        if self._fields_bytes > self.max_head_bytes:
            raise ValueError("the head is too large")
        if not all(_has_end(*field) for field in self.headers):
            self._fault = "it is ambiguous where this request's body ends (RFC 9112, 6.3)"
            raise ValueError(self._fault)  # llhttp looks too late, or not at all
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._fault = f"this request has {hosts} Host fields instead of one (RFC 9112, 3.2)"
            raise ValueError(self._fault)
        self._head_timer.cancel()
        self._in_head = False
        self._heads += 1
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle
        self.cycle.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
        self.cycle.transport = _Lingering(self)  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        """Where the caller is still sending what nobody will read, it gets a moment to notice the answer."""
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._linger()
        if self._behind and not self.transport.is_closing():
            self._feed()
            self.flow.resume_reading()

    def _linger(self) -> None:
        if not self._closing:
            self._closing = self.loop.call_later(LINGER_S, self.transport.close)

    def close_answered(self) -> None:
        """Closes, but not while the body still comes: unread, it has the kernel reset the connection and the answer."""
        if self.cycle.more_body and not self._refused:
            self._linger()
        else:
            self.transport.close()

    def on_message_complete(self) -> None:
        """It has sent all, after all."""
        if self.parser.should_upgrade():
            return  # only the head, see _unsupported_upgrade_warning
        if self._closing:
            self._closing.cancel()
            self._closing = None
            self.cycle.more_body = False
            if not self.cycle.keep_alive:
                self.transport.close()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed, or not within the limits."""
        if self.cycle and self.cycle.more_body:
            self._spoil()
        elif max(self._head_bytes, self._fields_bytes) > self.max_head_bytes:
            self._refuse(431, f"the request's head has more than {self.max_head_bytes} bytes")
        else:
            self._refuse(400, self._fault)

    def _spoil(self) -> None:
        """Chunks that are none: who reads the body raises it, see middleware.py, and no further request is taken."""
        self._refused = True
        self.cycle.scope[SPOILED] = True  # type: ignore[literal-required]
        self.cycle.keep_alive = False
        self.cycle.message_event.set()
        self._linger()

    def timeout_keep_alive_handler(self) -> None:
        """A caller whose next head has begun has that head's time."""
        if not self._in_head:
            self.timeout_keep_alive_task = self.loop.call_later(LOOK_S, super().timeout_keep_alive_handler)

    def _too_slow(self) -> None:
        if self.cycle and not self.cycle.response_complete:  # the caller may await that answer first
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_slow)
        else:
            self._head_timer = self.loop.call_later(LOOK_S, self._give_up)

    def _give_up(self) -> None:
        if self._head_bytes:
            self._refuse(408, f"the request's head did not come within {self.head_timeout_s:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Answers without a request, writes it down, and closes once the caller has had time to see it."""
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        if self.cycle is None or self.cycle.response_complete:  # else another answer is under way
            entry = Entry("http")
            entry.started, entry.status = self._began, status
            if status == 400:
                body = problem(ServiceError("bad_request", detail), entry.request_id)
            else:
                body = refusal(status, detail, entry.request_id)
            entry.code = str(body["code"])
            text = json.dumps(body)
            head = (
                "content-type: application/problem+json\r\nconnection: close\r\n"
                f"x-request-id: {entry.request_id}\r\nserver-timing: {entry.server_timing()}\r\n"
                f"content-length: {len(text)}\r\n\r\n"
            )
            entry.close()  # first: whoever has its id finds it in the log
            self.transport.write(STATUS_LINE[status] + (head + text).encode())
        self._head_timer.cancel()
        self._closing = self.loop.call_later(LINGER_S if status != 408 else 0, self.transport.close)


class _Flow(FlowControl):
    """A connection's, which reads nothing more while what has come waits to be parsed."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Unless something waits."""
        if not self._connection._behind:
            super().resume_reading()


class _Lingering:
    """A cycle's transport, which uvicorn closes with the last byte of an answer whose connection is not kept alive."""

    __slots__ = ("_connection", "write")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.transport, name)

    def close(self) -> None:
        self._connection.close_answered()


def _has_end(name: bytes, value: bytes) -> bool:
    """Not so of a body whose last encoding is not chunked (RFC 9112, 6.3)."""
    return name != b"transfer-encoding" or value.rpartition(b",")[2].strip().lower() == b"chunked"


def limited(max_head_bytes: int, head_timeout_s: float) -> type[Connection]:
    """The protocol with these limits."""
    return type("Limited", (Connection,), {"max_head_bytes": max_head_bytes, "head_timeout_s": head_timeout_s})
