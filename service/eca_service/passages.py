"""What an HTTP connection reads and writes through: uvicorn's flow control and transport, a little changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Inlet(FlowControl):
    """Reads nothing more while `full`: what has come waits to be parsed."""

    def __init__(self, transport: asyncio.Transport, full: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._full = full

    def resume_reading(self) -> None:
        """Unless it is full."""
        if not self._full():
            super().resume_reading()


class Outlet:
    """The transport of one answer, whose head waits for the first of its body, so that both leave in one packet: to
    write took the event loop as long as to parse the request, and each packet wakes the caller.

    uvicorn closes it with the last byte of an answer whose connection is not kept alive: `close` is called.
    """

    __slots__ = ("_close", "_cycle", "_head", "_loop", "_transport", "_write")

    def __init__(
        self,
        transport: asyncio.Transport,
        cycle: RequestResponseCycle,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._cycle = cycle
        self._loop = loop
        self._close = close
        self._write = transport.write
        self._head: bytes | None = b"" if cycle.scope["method"] == "HEAD" else None  # None: not there yet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Of the answer's head, its body, or what comes before both, as 100 Continue."""
        if self._head is None and self._cycle.response_started:
            self._head = data
            self._loop.call_soon(self._flush)  # a body that is not there yet is not awaited
        elif self._head:
            self._head, data = b"", self._head + data
            self._write(data)
        else:
            self._write(data)

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._write(self._head)
        self._head = b""

    def close(self) -> None:
        """Nothing more will be written."""
        self._flush()
        self._close()
