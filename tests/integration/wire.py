"""HTTP by hand, on sockets of the tests' own."""

from __future__ import annotations

import socket
import time

from tests.integration.conftest import Service


def connect(service: Service, port: int = 0) -> socket.socket:
    """A connection to the service: to its HTTP port, or another."""
    connection = socket.create_connection(("127.0.0.1", port or int(service.url.rpartition(":")[2])))
    connection.settimeout(20)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the service closes."""
    got = b""
    try:
        while data := connection.recv(1 << 16):
            got += data
    except ConnectionResetError:
        pass
    return got


def asked(connection: socket.socket, *pieces: bytes) -> list[bytes]:
    """The answers to what is sent piece by piece, until the service closes."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.1)
    return everything(connection).split(b"HTTP/1.1 ")[1:]


def post(body: bytes, *fields: bytes) -> bytes:
    """A request that classifies `body`, with these fields besides."""
    head = (b"POST /v1/classify HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join((*head, b"", b"")) + body
