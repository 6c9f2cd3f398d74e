"""Addresses behind names, and gRPC's name for several."""

from __future__ import annotations

import grpc
import pytest
from eca_service.resolver import Resolver, target


async def test_several_urls_are_all_their_addresses() -> None:
    resolver = Resolver(" 127.0.0.1:8001, 127.0.0.2:8001,[::1]:8001 ,")
    assert await resolver.addresses() == {"127.0.0.1:8001", "127.0.0.2:8001", "[::1]:8001"}


async def test_a_server_with_addresses_of_both_families_counts_once() -> None:
    assert await Resolver("localhost:8001").addresses() == {"127.0.0.1:8001"}


async def test_a_name_that_is_not_known_for_a_while_keeps_its_addresses() -> None:
    resolver = Resolver("localhost:8001")
    before = await resolver.addresses()
    resolver._known["nowhere.invalid:8001"] = frozenset({"127.0.0.9:8001"})
    resolver.urls.append("nowhere.invalid:8001")
    assert await resolver.addresses() == before | {"127.0.0.9:8001"}


@pytest.mark.parametrize("url", ["nowhere.invalid:8001", "no..name:8001", "x" * 64 + ":8001", "port"])
async def test_a_name_that_was_never_known_has_none(url: str) -> None:
    assert await Resolver(url).addresses() == frozenset()


@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        ({"10.0.0.2:8001", "10.0.0.1:8001"}, "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ({"[fd00::1]:8001"}, "ipv6:[fd00::1]:8001"),
        ({"10.0.0.1:8001", "[fd00::1]:8001"}, "ipv6:[::ffff:10.0.0.1]:8001,[fd00::1]:8001"),
    ],
)
def test_targets(addresses: set[str], named: str) -> None:
    assert target(addresses) == named


async def test_grpc_reaches_an_ipv4_server_under_its_ipv6_name() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(target({f"127.0.0.1:{port}", "[fd00::1]:1"})) as channel:
            call = channel.unary_unary("/nobody/Nothing")(b"", timeout=5)
            assert await call.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)
