"""Ports for what a test starts."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, and that nobody else is given until this process ends.

    One that is merely seen to be free may be another's before its server listens: of 6,000 services with three of these
    one had two alike. Here it stays bound, though nobody listens. Servers set SO_REUSEADDR, and so may listen on it;
    who asks for any port gets another.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    port: int = held.getsockname()[1]
    return port
