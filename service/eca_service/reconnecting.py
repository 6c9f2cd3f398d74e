"""The HTTP/2 connection to a server, which is made anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from eca_service.http2 import Connection

CONNECT_S = 3.0  # then the next call begins anew: the server may be another by then
AGAIN_S = 60.0  # after a connection on which the server broke the protocol: each is a line in the log
MOST_UNKNOWN = 10  # answers that are not understood, before any that is


class Reconnecting:
    """A connection for calls of the method at `path`; it is made beside the calls, none of which waits for it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._address: str | None = None
        self._connection: Connection | None = None
        self._making: asyncio.Task[None] | None = None

    def to(self, address: str | None) -> None:
        """The server is host:port from now on, or there is none. Calls to another end in peace."""
        if address != self._address:
            self._leave()
            self._address = address
        self.usable()

    def usable(self) -> Connection | None:
        """The connection; None where there is none now."""
        if (connection := self._connection) and connection.usable:
            return connection if connection.unknown < MOST_UNKNOWN else None
        bad = connection is not None and asyncio.get_running_loop().time() < connection.broken_at + AGAIN_S
        if self._address and not self._making and not bad:
            self._making = asyncio.create_task(self._make(self._address))
        return None

    async def close(self, patience_s: float) -> None:
        """Closes it; calls that still run after `patience_s` are cancelled."""
        self._address = None
        if self._making:
            self._making.cancel()
            await asyncio.wait([self._making])
        if self._connection:
            await self._connection.close(patience_s)

    def _leave(self) -> None:
        if self._connection:
            self._connection.leave()
            self._connection = None

    async def _make(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        how = partial(Connection, address, self._path)
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):  # it is not there: gRPC's client says so
                connected = asyncio.get_running_loop().create_connection(how, host.strip("[]"), int(port))
                _, made = await asyncio.wait_for(connected, CONNECT_S)
                self._connection = made
                if address != self._address:
                    self._leave()
        finally:
            self._making = None
