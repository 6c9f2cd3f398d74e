"""Memory that Triton reads too: each slot holds one batch, and no other's; and what a server is told of it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from eca_service import sharing
from eca_service.backend import Triton
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.region import SLOT_BYTES, SLOTS, Region

from tests.load import noop
from tests.unit.made_triton import Server, serving
from tests.unit.test_backend import images, in_s

IMAGE = np.zeros((224, 224, 3), np.uint8)
ABANDONED, FOREIGN = "eca_gateway_999999999_00", "another_s"  # no process has such an id

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory lies in /dev/shm")


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return noop.publish(tmp_path)


def test_what_is_larger_than_a_slot_is_not_laid_into_it() -> None:
    region = Region()
    region.unlink()
    assert region.lay([IMAGE] * 33) is None
    offsets = [region.lay([IMAGE] * 32) for _ in range(SLOTS)]
    assert len({*offsets} - {None}) == SLOTS
    assert region.lay([IMAGE]) is None, "all are taken"
    region.free(0)
    assert region.lay([IMAGE]) == 0


def named() -> list[Path]:
    """Files of this process's regions."""
    return list(Path("/dev/shm").glob(f"eca_gateway_{os.getpid()}_*"))


def test_nobody_else_may_read_it() -> None:
    region = Region()
    try:
        assert [path.stat().st_mode & 0o777 for path in named()] == [0o600]
    finally:
        region.unlink()
    assert not named()


@pytest.mark.parametrize(("free", "enough"), [(2 * SLOTS * SLOT_BYTES - 1, False), (2 * SLOTS * SLOT_BYTES, True)])
def test_triton_s_own_room_is_left_alone(monkeypatch: pytest.MonkeyPatch, free: int, enough: bool) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    if enough:
        Region().unlink()
    else:
        with pytest.raises(OSError, match="/dev/shm has no 36 MiB to spare"):
            Region()
    assert not named()


def test_where_it_cannot_be_had_nothing_is_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Region()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (named(), len(os.listdir("/proc/self/fd"))) == ([], len(before))


def client(triton: Triton) -> triton_grpc.InferenceServerClient:
    (found,) = triton.fleet._clients.values()
    return found


async def ask(triton: Triton, contract: Contract, count: int = 2, first: int = 5) -> None:
    """Asks for `count` images, and for each its own answer."""
    answer = await triton.infer(images(count, first), contract, in_s(20))
    assert answer["probabilities"][:, 0].tolist() == list(range(first, first + count))


def shared(server: Server) -> list[bool]:
    """Of the requests that came, which said where their images lie."""
    return [not request.raw_input_contents for request in server.requests]


async def test_images_travel_in_it_and_in_messages_where_it_is_full(contract: Contract) -> None:
    async with serving(same_host=True) as (server, triton):
        await ask(triton, contract)
        assert shared(server) == [False], "it is not agreed on yet"
        for _ in range(2):  # for several models at once, as they are loaded
            await asyncio.gather(*(triton._sharing.begin(client(triton)) for _ in range(3)))
        assert len(server.regions) == 1
        assert not named(), "no crash can leave it"
        for turn in range(2 * SLOTS):
            await ask(triton, contract, 1 + turn % 3, turn)
        assert all(shared(server)[1:]), "slots are given back"
        await ask(triton, contract, 33)
        assert shared(server)[-1] is False
        server.requests.clear()
        server.answer.clear()
        tasks = [asyncio.create_task(ask(triton, contract, 2, 10 * turn)) for turn in range(SLOTS + 2)]
        while len(server.requests) < SLOTS + 2:
            await asyncio.sleep(0.01)
        server.answer.set()
        await asyncio.gather(*tasks)
        assert sorted(shared(server)) == [False] * 2 + [True] * SLOTS


async def test_a_server_that_has_forgotten_it_gets_messages_until_there_is_another(contract: Contract) -> None:
    async with serving(same_host=True) as (server, triton):
        await triton._sharing.begin(client(triton))
        (before,) = server.regions
        server.regions.clear()
        for _ in range(2):
            await ask(triton, contract)
        assert shared(server)[-2:] == [False] * 2
        await triton._sharing.begin(client(triton))
        assert before not in server.regions
        await ask(triton, contract)
        assert shared(server)[-1]
        server.refusals = ["INTERNAL"]
        with pytest.raises(ServiceError, match="internal: Triton failed"):
            await ask(triton, contract)
        await ask(triton, contract)
        assert shared(server)[-2:] == [True] * 2, "another failure is none of the memory's"


async def test_regions_of_gateways_that_are_gone_are_forgotten_and_then_one_s_own(contract: Contract) -> None:
    async with serving(same_host=True) as (server, triton):
        server.regions = {ABANDONED: np.zeros(1, np.uint8), FOREIGN: np.zeros(1, np.uint8)}
        left = Path("/dev/shm", ABANDONED)
        left.touch()
        await triton._sharing.begin(client(triton))
        assert not left.exists()
        assert ABANDONED not in server.regions
        assert len(server.regions) == 2
        await ask(triton, contract)
        assert shared(server) == [True]
    assert list(server.regions) == [FOREIGN]


@pytest.mark.parametrize(
    ("refusals", "again"),
    [("UNAVAILABLE", True), ("SILENCE", True), ("OK SILENCE", True), ("UNIMPLEMENTED", False), ("OK INTERNAL", False)],
)
async def test_a_server_that_does_not_take_it_gets_messages(
    contract: Contract, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refusals: str, again: bool
) -> None:
    """One that does not answer is asked again."""
    async with serving(same_host=True) as (server, triton):
        server.refusals = refusals.split()
        if "SILENCE" in server.refusals:
            monkeypatch.setattr(sharing, "CONTROL_S", 0.5)
        with caplog.at_level(logging.WARNING):
            await asyncio.wait_for(triton._sharing.begin(client(triton)), 10)
        assert not named()
        monkeypatch.undo()
        assert ("in messages, not in shared memory" in caplog.text) is not again
        await ask(triton, contract)
        await triton._sharing.begin(client(triton))
        await ask(triton, contract)
        assert shared(server) == [False, again]


async def test_where_there_is_no_room_images_travel_in_messages(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    async with serving(same_host=True) as (server, triton):
        await triton._sharing.begin(client(triton))
        await ask(triton, contract)
        assert (shared(server), server.regions) == ([False], {})


@pytest.mark.parametrize(
    ("urls", "same_host", "wanted"),
    [("{}", True, True), (" {}, ", True, True), ("{},127.0.0.1:1", True, False), ("{}", False, False)],
)
async def test_only_one_server_of_this_host_is_asked(urls: str, same_host: bool, wanted: bool) -> None:
    async with serving() as (server, _):
        triton: Any = Triton(urls.format(server.url), same_host)
        await triton.fleet.look()
        await triton._sharing.begin(triton.fleet._clients[server.url])
        assert bool(server.regions) is wanted
        await triton.close()


async def test_a_server_that_does_not_answer_is_not_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(same_host=True) as (server, triton):
        await triton._sharing.begin(client(triton))
        monkeypatch.setattr(sharing, "CONTROL_S", 0.1)
        server.refusals = ["SILENCE"]
        await asyncio.wait_for(triton._sharing.end([client(triton)]), 10)
