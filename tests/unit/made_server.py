"""A server that answers as a test says, and what either client makes of it."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from eca_service.client import AsyncClient, Client, ClientError

both = pytest.mark.parametrize("kind", [Client, AsyncClient])
Call = Callable[[Any], Any]


def asked(kind: type, url: str, call: Call, **options: Any) -> Any:
    """What `call` makes of a client of that kind."""

    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            return await call(client)

    if kind is AsyncClient:
        return asyncio.run(run())
    with Client(url, **options) as client:
        return call(client)


def error_of(kind: type, url: str, call: Call, **options: Any) -> ClientError:
    """What that raises."""
    with pytest.raises(ClientError) as told:
        asked(kind, url, call, **options)
    return told.value


def classified(client: Any) -> Any:
    """The simplest call."""
    return client.classify(b"image")


@contextmanager
def server(
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    pause_s: float = 0,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> Iterator[tuple[str, list[tuple[str, Message]]]]:
    """Answers every request so, a byte each `pause_s`: its localhost:PORT, and the paths and headers it was sent."""
    seen: list[tuple[str, Message]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            for place in range(len(body) if pause_s else 1):
                self.wfile.write(body[place : place + 1] if pause_s else body)
                time.sleep(pause_s)

        do_GET = do_PUT = do_DELETE = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                """The caller went."""

    running = ThreadingHTTPServer(("localhost", port), Handler)
    if tls:
        running.socket = tls.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"localhost:{running.server_port}", seen
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
