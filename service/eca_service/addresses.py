"""Hosts and ports as one text, whatever family of addresses they are of."""

from __future__ import annotations

import socket

EVERYWHERE = "::"  # on all addresses, of IPv4 too where it is there


def joined(host: str, port: int) -> str:
    """host:port; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def from_here(host: str) -> str:
    """Where this machine reaches who listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", EVERYWHERE: "::1"}.get(host, host)


def family(host: str) -> socket.AddressFamily:
    """Of a socket that listens on `host`, an address or a name."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listener(host: str, port: int, backlog: int) -> socket.socket:
    """Listens there. Raises OSError where that cannot be."""
    both = host == EVERYWHERE and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family(host), backlog=backlog, dualstack_ipv6=both)
