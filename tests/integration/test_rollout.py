"""Rollouts that overlap: what is unloaded, taken again or unloaded by somebody else meanwhile. With the real Triton."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from eca_service.backend import Triton
from eca_service.contract import Contract
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.fleet import Fleet
from eca_service.peers import Peers
from eca_service.readiness import RETRY_EVERY_S, Readiness
from eca_service.registry import Registry, pin
from eca_service.rollout import Rollout
from eca_service.sharing import Sharing
from eca_service.tracing import Tracing
from eca_service.triton.supervisor import TritonServer
from tritonclient.grpc.aio import InferenceServerClient

from tests.integration.conftest import MODEL
from tests.integration.test_reload import publish
from tests.ports import free_port

KEEP_S, PAUSE_S = 0.1, 0.4


class Disturbed(Fleet):
    """Unloads only after a pause, and then whatever happens, as what was sent cannot be called back; what was loaded is
    unloaded again `thefts` times, as if by another gateway.
    """

    thefts = 0

    async def keep(self, home: Path, versions: Collection[int]) -> None:
        async def later() -> None:
            await asyncio.sleep(PAUSE_S)
            await Fleet.keep(self, home, versions)

        await asyncio.shield(later())

    async def load(self, contract: Contract, home: Path, versions: Collection[int]) -> int:
        slots = await super().load(contract, home, versions)
        if self.thefts:
            self.thefts -= 1
            await super().keep(home, set(versions) - {contract.version})
        return slots


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository of one model in two versions."""
    shutil.copytree(repository / MODEL, tmp_path / "repository" / MODEL)
    publish(tmp_path / "repository", 2)
    return tmp_path / "repository"


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[TritonServer]:
    server = TritonServer(models, free_port(), tmp_path / "triton.log")
    server.start()
    try:
        yield server
    finally:
        server.stop(at_once=True)


@pytest.fixture
async def fleet(server: TritonServer) -> AsyncIterator[Disturbed]:
    fleet = Disturbed(server.address, Sharing(False))
    try:
        end = time.monotonic() + 60
        while not await fleet.look():
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        yield fleet
    finally:
        await fleet.close()


@pytest.fixture
async def rollout(fleet: Disturbed, models: Path) -> AsyncIterator[tuple[Rollout, Registry, Engines]]:
    """It serves version 2."""
    triton = Triton("127.0.0.1:1")
    triton.fleet = fleet
    registry, engines = Registry(models, None), Engines(triton, Tracing(None))
    rollout = Rollout(registry, fleet, engines, KEEP_S)
    await rollout.load(registry.get(MODEL))
    try:
        yield rollout, registry, engines
    finally:
        await rollout.close()
        await triton.close()


def anew(folder: Path) -> None:
    """Another build by the same number: its engine's answers are the golden ones turned round."""
    contract = json.loads((folder / "contract.json").read_text())
    engine = onnx.load(folder / "model.onnx")
    last = next(node for node in engine.graph.node if "probabilities" in node.output)
    last.output[0] = "straight"
    engine.graph.node.append(onnx.helper.make_node("Gather", ["straight", "backwards"], ["probabilities"], axis=1))
    order = np.arange(contract["classes"])[::-1].copy()
    engine.graph.initializer.append(onnx.numpy_helper.from_array(order, "backwards"))
    onnx.save(engine, folder / "model.onnx")
    contract["engine_sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    contract["golden"]["probabilities"] = [row[::-1] for row in contract["golden"]["probabilities"]]
    (folder / "contract.json").write_text(json.dumps(contract))


async def loaded(server: TritonServer) -> list[str]:
    """The model's versions that Triton has ready."""
    async with InferenceServerClient(server.address) as client:
        index = (await client.get_model_repository_index()).models
        return sorted(model.version for model in index if model.name == MODEL and model.state == "READY")


async def until_loaded(
    server: TritonServer, versions: list[str], meanwhile: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0.05)
) -> None:
    """Waits until these versions, and no others, are ready; what is done `meanwhile` must not fail."""
    end = time.monotonic() + 20
    while (found := await loaded(server)) != versions:
        assert time.monotonic() < end, found
        await meanwhile()


async def test_what_is_being_unloaded_is_served_again(
    rollout: tuple[Rollout, Registry, Engines], models: Path, server: TritonServer
) -> None:
    follower, registry, engines = rollout
    pin(models, MODEL, 1)
    await follower.follow()
    assert registry.get(MODEL).contract.version == 1
    await asyncio.sleep(KEEP_S + PAUSE_S / 2)  # version 2 is about to be unloaded
    pin(models, MODEL, None)
    await follower.follow()
    assert registry.get(MODEL).contract.version == 2
    await until_loaded(server, ["2"], lambda: engines.golden(registry.get(MODEL)))


async def test_one_that_is_served_again_in_time_is_never_unloaded(
    rollout: tuple[Rollout, Registry, Engines], models: Path, server: TritonServer
) -> None:
    follower, registry, engines = rollout
    for version in (1, None):
        pin(models, MODEL, version)
        await follower.follow()
    await until_loaded(server, ["2"], lambda: engines.golden(registry.get(MODEL)))
    await engines.golden(registry.get(MODEL))


async def test_an_old_version_waits_for_its_requests(
    rollout: tuple[Rollout, Registry, Engines], models: Path, server: TritonServer
) -> None:
    follower, registry, engines = rollout
    old = registry.get(MODEL)
    pin(models, MODEL, 1)
    with registry.lease(old):
        await follower.follow()
        await asyncio.sleep(KEEP_S + 2 * PAUSE_S)
        await engines.golden(old)
    await until_loaded(server, ["1"])


async def test_what_another_gateway_unloads_is_tried_again_and_not_refused(
    rollout: tuple[Rollout, Registry, Engines], fleet: Disturbed, models: Path
) -> None:
    follower, registry, _ = rollout
    pin(models, MODEL, 1)
    fleet.thefts = 1
    await follower.follow()
    assert registry.get(MODEL).contract.version == 2
    await follower.follow()
    assert registry.get(MODEL).contract.version == 1


async def test_a_lost_configuration_is_told(
    rollout: tuple[Rollout, Registry, Engines], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follower, _, _ = rollout
    pin(models, MODEL, 1)
    await follower.follow()
    (models / MODEL / "config.pbtxt").unlink()
    end = time.monotonic() + 20
    with caplog.at_level(logging.WARNING):
        while f"Triton keeps what {MODEL} no longer needs" not in caplog.text:
            assert time.monotonic() < end, caplog.text
            await asyncio.sleep(0.05)


async def test_what_triton_cannot_read_in_a_model_s_folder_is_told_with_where_it_is_named(
    rollout: tuple[Rollout, Registry, Engines], models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the link by which Emacs says that somebody edits a file."""
    follower, registry, _ = rollout
    link = models / MODEL / ".#config.pbtxt"
    link.symlink_to("somebody@nowhere")
    publish(models, 3)
    await follower.follow()
    assert "version 3 is refused: " in caplog.text
    assert "its log names the file that it cannot read, such as a link that leads nowhere" in caplog.text
    assert str(link) in (tmp_path / "triton.log").read_text()
    link.unlink()
    await follower.follow()
    assert registry.get(MODEL).contract.version == 3


@pytest.fixture
async def readiness(rollout: tuple[Rollout, Registry, Engines], fleet: Disturbed) -> AsyncIterator[Readiness]:
    """It has found version 2 ready, and follows."""
    follower, registry, engines = rollout
    readiness = Readiness(registry, fleet, engines, follower, Peers())
    watch = asyncio.create_task(readiness.watch())
    try:
        await until(lambda: readiness.ready)
        yield readiness
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def until(condition: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Waits for `condition`; what is done `meanwhile` must not fail."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        meanwhile()
        await asyncio.sleep(0.001)


async def test_a_version_that_is_deleted_is_left_before_it_is_missed(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path
) -> None:
    _, registry, _ = rollout
    shutil.rmtree(models / MODEL / "2")
    readiness.suspect()
    await until(lambda: registry.get(MODEL).contract.version == 1, lambda: readiness.require(registry.get(MODEL)))
    assert readiness.ready


async def test_one_of_its_files_may_go_before_the_others(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_service.engines.GOES_S", 10.0)
    _, registry, _ = rollout
    (models / MODEL / "2" / "golden.npy").unlink()
    readiness.suspect()
    await asyncio.sleep(0.3)
    readiness.require(registry.get(MODEL))
    shutil.rmtree(models / MODEL / "2")
    await until(lambda: registry.get(MODEL).contract.version == 1, lambda: readiness.require(registry.get(MODEL)))
    assert readiness.ready


async def test_a_version_that_was_damaged_is_ready_when_it_is_served_again(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path
) -> None:
    _, registry, _ = rollout
    golden = models / MODEL / "2" / "golden.npy"
    golden.rename(models / "golden.npy")
    readiness.suspect()
    await until(lambda: not readiness.ready)
    pin(models, MODEL, 1)
    await until(lambda: readiness.ready)
    (models / "golden.npy").rename(golden)
    pin(models, MODEL, None)
    await until(lambda: registry.get(MODEL).contract.version == 2)
    readiness.require(registry.get(MODEL))


async def test_a_version_that_was_taken_over_was_golden(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path
) -> None:
    """It is not left for an older one where its golden file is lost before it was asked again."""
    _, registry, _ = rollout
    folder = publish(models, 3)
    await until(lambda: registry.get(MODEL).contract.version == 3)
    (folder / "golden.npy").unlink()
    readiness.suspect()
    await until(lambda: not readiness.ready)
    await asyncio.sleep(2 * RETRY_EVERY_S)
    assert registry.get(MODEL).contract.version == 3


async def test_what_is_loaded_serves_on_while_the_repository_is_unmounted(
    rollout: tuple[Rollout, Registry, Engines],
    readiness: Readiness,
    models: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a version was to be unloaded just then: Triton is not told of folders that nobody sees."""
    caplog.set_level(logging.INFO, "eca_service")
    _, registry, engines = rollout
    pin(models, MODEL, 1)
    await until(lambda: registry.get(MODEL).contract.version == 1)
    models.rename(models.parent / "away")
    readiness.suspect()
    await until(lambda: f"{models} shows no model" in caplog.text)
    await asyncio.sleep(KEEP_S + PAUSE_S + 4 * RETRY_EVERY_S)
    assert readiness.ready
    await engines.golden(registry.get(MODEL))
    assert caplog.text.count("shows no model") == 1
    assert "version 2 is unloaded" not in caplog.text
    (models.parent / "away").rename(models)
    await until(lambda: f"{MODEL} version 2 is unloaded" in caplog.text)
    assert readiness.ready


async def test_a_number_that_is_given_to_another_build_is_that_build_s(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path
) -> None:
    """What Triton still has by the number is not taken for it."""
    _, registry, engines = rollout
    (models / MODEL).rename(models.parent / MODEL)
    shutil.copytree(models.parent / MODEL, models / "kept")  # no model, but a repository that is not empty
    with registry.lease(registry.get(MODEL)):
        await until(lambda: not registry.models)
        anew(models.parent / MODEL / "2")
        (models.parent / MODEL).rename(models / MODEL)
        await until(lambda: bool(registry.models))
    assert registry.get(MODEL).contract.version == 2
    await engines.golden(registry.get(MODEL))


async def test_a_version_that_is_replaced_is_served_when_the_one_before_cannot_be(
    rollout: tuple[Rollout, Registry, Engines], readiness: Readiness, models: Path
) -> None:
    _, registry, engines = rollout
    before = registry.get(MODEL)
    anew(models / MODEL / "2")
    (models / MODEL / "2" / "golden.npy").rename(models / "golden.npy")
    readiness.suspect()
    await until(lambda: registry.get(MODEL) != before)
    assert not readiness.ready
    (models / "golden.npy").rename(models / MODEL / "2" / "golden.npy")
    await until(lambda: readiness.ready)
    assert registry.get(MODEL).contract.version == 2
    await engines.golden(registry.get(MODEL))


@pytest.fixture
async def another(server: TritonServer, models: Path) -> AsyncIterator[tuple[Rollout, Registry, Fleet]]:
    """One that follows the same repository beside `rollout`, started once there is a version 3; nothing is loaded."""
    publish(models, 3)
    triton = Triton(server.address)
    registry = Registry(models, None)
    rollout = Rollout(registry, triton.fleet, Engines(triton, Tracing(None)), KEEP_S)
    end = time.monotonic() + 60
    while not await triton.fleet.look():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    try:
        yield rollout, registry, triton.fleet
    finally:
        await rollout.close()
        await triton.close()


async def test_one_that_starts_with_a_new_version_leaves_the_others_theirs(
    rollout: tuple[Rollout, Registry, Engines], another: tuple[Rollout, Registry, Fleet], server: TritonServer
) -> None:
    """As a worker that comes in another's place, or one more gateway: it never served what the others still do."""
    _, registry, engines = rollout
    follower, ahead, _ = another
    async with follower.turn(MODEL):
        await follower.load(ahead.get(MODEL))
        assert await loaded(server) == ["2", "3"]
        await engines.golden(registry.get(MODEL))
    await until_loaded(server, ["3"])  # by when they have followed


async def test_one_that_starts_with_a_bad_version_leaves_it_for_the_others(
    rollout: tuple[Rollout, Registry, Engines],
    another: tuple[Rollout, Registry, Fleet],
    server: TritonServer,
) -> None:
    _, registry, engines = rollout
    follower, ahead, _ = another
    bad = ahead.get(MODEL)
    await follower.load(bad)
    assert await follower.refuse(bad, ServiceError("model_not_ready", "as its golden answers are others"))
    await follower.follow()
    assert ahead.get(MODEL) == registry.get(MODEL)
    await until_loaded(server, ["2"], lambda: engines.golden(registry.get(MODEL)))


async def test_a_bad_version_that_was_left_is_asked_of_triton_no_more(
    another: tuple[Rollout, Registry, Fleet], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the one before takes longer to load than until the bad one may be tried again."""
    follower, registry, fleet = another
    bad, load = registry.get(MODEL), fleet.load
    (bad.folder / "model.onnx").unlink()
    with pytest.raises(ServiceError) as caught:
        await follower.load(bad)
    assert await follower.refuse(bad, caught.value)

    async def slow(contract: Contract, home: Path, versions: Collection[int]) -> int:
        slots = await load(contract, home, versions)
        while follower.was_refused(bad.folder):
            await asyncio.sleep(0.05)
        return slots

    monkeypatch.setattr(fleet, "load", slow)
    await follower.follow()
    while registry.get(MODEL).contract.version != 2:  # it takes longer than is waited for
        await follower.follow()
    await follower.load(registry.get(MODEL))
