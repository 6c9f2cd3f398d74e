"""Which servers get images, and what is asked of those that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.fleet import Fleet
from eca_service.resolver import Resolver
from eca_service.sharing import Sharing

from tests.load import noop
from tests.unit.made_triton import Server, listening


def test_a_server_gets_images_once_it_has_all_models_that_another_has() -> None:
    fleet = Fleet("a:1,b:1", Sharing(False))
    for loaded, serving in (
        ({"a": {"m", "n"}, "b": {"m"}}, {"a"}),
        ({"a": {"m", "n"}, "b": {"n", "m"}}, {"a", "b"}),
        ({"a": {"m"}, "b": {"n"}}, {"a", "b"}),  # nobody has all: as it was
    ):
        fleet._loaded = loaded
        fleet._choose()
        assert fleet.serving == serving


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return noop.publish(tmp_path)


@pytest.fixture
def home(contract: Contract, tmp_path: Path) -> Path:
    return tmp_path / contract.name


@asynccontextmanager
async def fleet_of(*servers: Server) -> AsyncIterator[Fleet]:
    """All of these, which are asked in this order."""
    fleet = Fleet("", Sharing(False))
    for count in range(len(servers)):
        await there_are(fleet, *servers[: count + 1])
    try:
        yield fleet
    finally:
        await fleet.close()


async def there_are(fleet: Fleet, *servers: Server) -> None:
    """These, by the names that it looks up."""
    fleet._resolver = Resolver(",".join(server.url for server in servers))
    await fleet.look()


async def while_one_leaves(
    work: Coroutine[Any, Any, Any], fleet: Fleet, goes: Server, *stay: Server
) -> asyncio.Task[Any]:
    """The work, done, which was asking the one that goes."""
    task = asyncio.create_task(work)
    await asyncio.wait_for(goes.began.wait(), 10)
    await there_are(fleet, *stay)
    await asyncio.wait({task}, timeout=10)
    assert task.done()
    assert not task.cancelled()
    return task


@pytest.mark.parametrize("kept", [(), (1,)])
async def test_one_that_leaves_while_it_unloads_does_not_end_what_is_asked_of_the_others(
    home: Path, kept: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(held=True) as goes, listening() as stays, fleet_of(goes, stays) as fleet:
        stays.loaded = {"1", "2"}
        await while_one_leaves(fleet.keep(home, kept), fleet, goes, stays)
        assert stays.loaded == set(map(str, kept))
        assert "Triton keeps what noop no longer needs: backend_unavailable: the server has left" in caplog.text


async def test_one_that_leaves_while_it_loads_is_a_failure_like_others(contract: Contract, home: Path) -> None:
    async with listening(held=True) as goes, listening() as comes, fleet_of(goes) as fleet:
        load = await while_one_leaves(fleet.load(contract, home, {1}), fleet, goes, comes)
        with pytest.raises(ServiceError, match="backend_unavailable: the server has left"):
            load.result()
        assert await fleet.load(contract, home, {1}) == 1
        assert fleet.serving == {comes.url}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (f"{noop.CROP}, 3", f"{noop.CROP}, 4", r"config.pbtxt has image as .*, the contract"),
        ("max_batch_size: ", "max_batch_size: 0 # ", "config.pbtxt has a max_batch_size of 0, the contract of"),
    ],
)
async def test_no_server_is_given_a_configuration_that_is_not_the_contract_s(
    contract: Contract, home: Path, before: str, after: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would apply it to the version that it serves, and keep to it when the file is mended."""
    async with listening() as server, fleet_of(server) as fleet:
        await fleet.load(contract, home, {1})
        text = (home / "config.pbtxt").read_text()
        (home / "config.pbtxt").write_text(text.replace(before, after))
        server.began.clear()
        server.loaded.clear()  # as of a newer version
        with pytest.raises(ServiceError, match=told):
            await fleet.load(contract, home, {1})
        await fleet.keep(home, {1})
        assert not server.began.is_set()
        assert "Triton keeps what noop no longer needs" in caplog.text
        (home / "config.pbtxt").write_text(text)
        assert await fleet.load(contract, home, {1}) == 1


async def test_whether_calls_may_be_cancelled_follows_the_version_of_each_load(contract: Contract, home: Path) -> None:
    async with listening("2.58.0") as server, fleet_of() as fleet:
        server.live = False
        await there_are(fleet, server)
        server.live = True  # in between
        for version, cancels in (("2.58.0", True), ("2.57.0", False), ("2.66.0", True)):  # each in the other's place
            server.version = version
            await fleet.load(contract, home, {1})
            assert fleet.serving == {server.url}
            assert fleet.cancels is cancels
