"""Which addresses a list of names stands for now: DNS, /etc/hosts or whatever the machine resolves names with."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from eca_service.addresses import joined

LOOKUP_S = 3.0


class Resolver:
    """`urls` is host:port, several separated by commas; a host may have many addresses, as a headless service has."""

    def __init__(self, urls: str) -> None:
        self.urls = [url.strip() for url in urls.split(",") if url.strip()]
        self._known: dict[str, frozenset[str]] = {}

    async def addresses(self) -> frozenset[str]:
        """All addresses, each as ip:port. A name that cannot be resolved now keeps those that it had before.

        Of a name that has both, the IPv4 addresses are taken: it is one server, which must not count twice.
        """
        found = await asyncio.gather(*map(self._lookup, self.urls))
        for url, addresses in zip(self.urls, found, strict=True):
            if addresses:
                self._known[url] = addresses
        return frozenset().union(*self._known.values())

    async def _lookup(self, url: str) -> frozenset[str]:
        host, _, port = url.rpartition(":")
        try:
            lookup = asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            found = await asyncio.wait_for(lookup, LOOKUP_S)
        except (OSError, ValueError, asyncio.TimeoutError):  # ValueError: what no name may look like
            return frozenset()
        four = [address for family, *_, address in found if family == socket.AF_INET]
        return frozenset(joined(str(address[0]), int(address[1])) for address in four or [info[4] for info in found])


def target(addresses: Iterable[str]) -> str:
    """gRPC's name for a list of addresses. It takes one family in a list: with IPv6 among them all are written so."""
    ordered = sorted(addresses)
    if not any(address.startswith("[") for address in ordered):
        return "ipv4:" + ",".join(ordered)
    mapped = (a if a.startswith("[") else "[::ffff:{}]:{}".format(*a.rsplit(":", 1)) for a in ordered)
    return "ipv6:" + ",".join(mapped)
