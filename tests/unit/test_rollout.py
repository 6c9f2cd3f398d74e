"""Versions that are refused, and those that are not held against."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from eca_service import disk, metrics
from eca_service import rollout as rollouts
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.registry import Model, Registry, pin
from eca_service.rollout import Rollout
from eca_service.triton.failures import NotLoaded

from tests.unit.test_registry import published


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """Of one model in one version; there is nothing that runs it."""
    published(tmp_path, "refused")
    nothing: Any = None
    return Rollout(Registry(tmp_path, None), nothing, nothing, keep_s=0)


def told() -> float | None:
    found: float | None = metrics.registry.get_sample_value("eca_model_refused", {"model": "refused", "version": "1"})
    return found


async def test_a_refused_version_is_told_until_it_is_golden_after_all(
    rollout: Rollout, caplog: pytest.LogCaptureFixture
) -> None:
    model = rollout._registry.get("refused")
    for error in (ServiceError("internal", "it answers otherwise"),) * 2 + (ValueError("odd"),):
        assert await rollout.refuse(model, error)
        assert told() == 1
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        ("refused version 1 is refused: it answers otherwise", False),
        ("refused version 1 is refused: the check failed: ValueError('odd')", True),
    ]
    assert not rollout._versions(model.folder.parent), "Triton need not hold it"
    rollout.accept(model.folder)
    assert told() is None
    assert rollout._versions(model.folder.parent) == {1}
    rollout.accept(model.folder)
    with caplog.at_level(logging.ERROR):
        caplog.clear()
        assert await rollout.refuse(model, ValueError("odd"))
        assert len(caplog.records) == 1, "it is another time"
    rollout.accept(model.folder)


async def test_one_that_fails_for_days_is_still_refused(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    for _ in range(1200):  # 2 ** 1024 is no float
        assert await rollout.refuse(model, ServiceError("internal", "it answers otherwise"))
    assert rollout.was_refused(model.folder)
    assert rollout._refused[model.folder][1] <= time.monotonic() + rollouts.TRY_AGAIN_S
    rollout.accept(model.folder)


async def test_what_is_no_fault_of_the_version_is_not_held_against_it(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    for error in (NotLoaded("model_not_ready", "it was unloaded"), ServiceError("overloaded", "Triton is busy")):
        assert not await rollout.refuse(model, error)
    assert told() is None


async def test_a_refused_version_is_another_one_when_its_files_change(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    (model.folder / "link").symlink_to("nowhere")
    for changed in (model.folder / "golden.npy", model.folder.parent / "config.pbtxt", model.folder / "contract.json"):
        assert await rollout.refuse(model, ValueError("odd"))
        await rollout.follow()
        assert told() == 1
        changed.touch()
        await rollout.follow()
        assert told() is None


async def test_nor_is_a_disk_that_does_not_answer(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: Path) -> Any:
        raise disk.NoAnswer

    monkeypatch.setattr(rollouts, "_stamp", silent)
    assert not await rollout.refuse(rollout._registry.get("refused"), ValueError("odd"))


class Triton:
    """Stands for fleet and engines: writes down what it is told, and fails what it is asked while `error` is set."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.slots = 0
        self.had: set[int] = set()
        self.error: Exception | None = None

    async def load(self, contract: Contract, _: Path, versions: set[int]) -> int:
        self.told.append(f"load {contract.name} {sorted(versions)}")
        return 2

    async def held(self, _: str) -> set[int]:
        return self.had

    async def keep(self, home: Path, versions: set[int]) -> None:
        self.told.append(f"keep {home.name} {sorted(versions)}")

    def of(self, _: Contract) -> Triton:
        return self

    def drop(self, contract: Contract) -> None:
        self.told.append(f"drop {contract.name} {contract.version}")

    async def golden(self, model: Model) -> None:
        self.told.append(f"ask {model.contract.name} {model.contract.version}")
        if self.error:
            raise self.error


@asynccontextmanager
async def following(folder: Path, keep_s: float = 0.0) -> AsyncIterator[tuple[Rollout, Registry, Triton]]:
    """Of "m" in version 1."""
    published(folder, "m")
    registry, triton = Registry(folder, None), Triton()
    nothing: Any = triton
    made = Rollout(registry, nothing, nothing, keep_s)
    try:
        yield made, registry, triton
    finally:
        await made.close()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_the_old_version_is_unloaded_when_nobody_uses_it(tmp_path: Path) -> None:
    async with following(tmp_path) as (made, registry, triton):
        old = registry.get("m")
        published(tmp_path, "m", 2)
        with registry.lease(old):
            await made.follow()
            assert registry.get("m").contract.version == 2
            assert triton.slots == 2
            assert metrics.registry.get_sample_value("eca_model_ready", {"model": "m", "version": "2"}) == 1
            await asyncio.sleep(0.2)
            assert triton.told == ["load m [1, 2]", "ask m 2"]
        async with made.turn("m"):  # somebody tells Triton which versions to have
            await asyncio.sleep(0.2)
            assert len(triton.told) == 2
        await until(lambda: len(triton.told) == 4)
        assert triton.told[2:] == ["drop m 1", "keep m [2]"]
        await asyncio.sleep(0.05)
        assert made._versions(tmp_path / "m") == {2}


async def test_what_triton_had_before_is_unloaded_once(tmp_path: Path) -> None:
    """Also where it is what this one leaves before it has loaded any."""
    async with following(tmp_path, keep_s=60) as (rollout, registry, triton):
        triton.had = {1}
        published(tmp_path, "m", 2)
        await rollout.follow()
        assert registry.get("m").contract.version == 2
        assert triton.told[0] == "load m [1, 2]"
        assert sum("Rollout._unload" in repr(task) for task in asyncio.all_tasks()) == 1


async def test_nothing_is_unloaded_while_the_repository_is_out_of_sight(tmp_path: Path) -> None:
    """Triton, told to keep the new version, would not find that either."""
    async with following(tmp_path / "models") as (made, registry, triton):
        published(tmp_path / "models", "m", 2)
        with registry.lease(registry.get("m")):
            await made.follow()
            (tmp_path / "models").rename(tmp_path / "away")
        await asyncio.sleep(0.3)
        await made.follow()
        assert registry.get("m").contract.version == 2, "what is loaded is served"
        assert triton.told == ["load m [1, 2]", "ask m 2"]
        (tmp_path / "away").rename(tmp_path / "models")
        await until(lambda: triton.told[2:] == ["drop m 1", "keep m [2]"])


async def test_a_version_that_is_current_again_is_not_unloaded(tmp_path: Path) -> None:
    async with following(tmp_path, keep_s=0.2) as (made, registry, triton):
        published(tmp_path, "m", 2)
        await made.follow()
        pin(tmp_path, "m", 1)
        await made.follow()
        assert registry.get("m").contract.version == 1
        assert triton.told == ["load m [1, 2]", "ask m 2", "load m [1, 2]", "ask m 1"]
        await until(lambda: len(triton.told) > 5)
        await asyncio.sleep(0.1)
        assert triton.told[4:] == ["drop m 2", "keep m [1]"]


async def test_a_version_that_fails_is_unloaded_and_what_was_served_serves_on(tmp_path: Path) -> None:
    async with following(tmp_path) as (made, registry, triton):
        published(tmp_path, "m", 2)
        triton.error = NotLoaded("model_not_ready", "it was unloaded")
        published(tmp_path, "m", 3)
        for _ in range(2):
            await made.follow()
        assert triton.told == ["load m [1, 3]", "ask m 3", "drop m 3"] * 2, "it is tried again, and no other instead"
        triton.told.clear()
        triton.error = ServiceError("internal", "it answers otherwise")
        for _ in range(2):
            await made.follow()
        assert triton.told == [
            told
            for version in (3, 2)
            for told in (f"load m [1, {version}]", f"ask m {version}", f"drop m {version}", "keep m [1]")
        ]
        assert registry.get("m").contract.version == 1
        triton.told.clear()
        triton.error = None
        (tmp_path / "m" / "2" / "contract.json").touch()
        await made.follow()
        assert triton.told[:2] == ["load m [1, 2]", "ask m 2"], "its files are others, and those of 3 are not"
        made.accept(tmp_path / "m" / "3")


async def test_a_model_that_is_taken_out_is_unloaded_but_not_all_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published(tmp_path / "models", "n")
    async with following(tmp_path / "models") as (made, registry, triton):
        metrics.model_ready.labels("n", "1").set(1)
        (tmp_path / "models" / "n").rename(tmp_path / "n")
        await made.follow()
        assert registry.models.keys() == {"m"}
        assert metrics.registry.get_sample_value("eca_model_ready", {"model": "n", "version": "1"}) is None
        await until(lambda: triton.told == ["drop n 1", "keep n []"])
        (tmp_path / "models" / "m").rename(tmp_path / "m")
        for _ in range(2):
            await made.follow()
        assert registry.models.keys() == {"m"}, "it is more likely unmounted"
        assert caplog.text.count("shows no model; the loaded models are still served") == 1


async def test_one_that_is_golden_after_all_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "TRY_AGAIN_S", 0.1)
    series = {"model": "m", "version": "2"}
    async with following(tmp_path) as (made, registry, triton):
        published(tmp_path, "m", 2)
        triton.error = ServiceError("internal", "it answers otherwise")
        await made.follow()
        assert metrics.registry.get_sample_value("eca_model_refused", series) == 1
        triton.error = None
        await asyncio.sleep(0.15)
        await made.follow()
        assert registry.get("m").contract.version == 2
        assert metrics.registry.get_sample_value("eca_model_refused", series) is None


async def test_one_that_loads_is_loaded_once_and_not_taken_out_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "TAKE_S", 0.05)
    published(tmp_path, "n")
    async with following(tmp_path) as (made, registry, triton):
        published(tmp_path, "m", 2)
        async with made.turn("m"):
            for _ in range(2):
                await made.follow()
            (tmp_path / "m").rename(tmp_path.parent / f"{tmp_path.name}-m")
            await made.follow()
            assert registry.models.keys() == {"m", "n"}
        await until(lambda: triton.told == ["load m [1, 2]", "ask m 2"])
        published(tmp_path, "n", 2)
        async with made.turn("n"):
            await made.follow()
            (loading,) = made._taking.values()
            await asyncio.wait_for(made.close(), 10)
            assert loading.cancelled()


async def test_what_waits_to_be_unloaded_holds_up_no_end_and_no_other_model(tmp_path: Path) -> None:
    published(tmp_path, "n", 7)
    async with following(tmp_path, keep_s=60) as (made, _, triton):
        (tmp_path / "n").rename(tmp_path / ".n")
        await made.follow()
        published(tmp_path, "m", 2)
        await made.follow()
        waiting = list(made._retiring.values())
        assert len(waiting) == 2
        await asyncio.wait_for(made.close(), 10)
        assert all(task.cancelled() for task in waiting)
        assert triton.told == ["load m [1, 2]", "ask m 2"]


async def test_a_trouble_of_ours_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whom calls it: here only what the version is at fault for is."""
    async with following(tmp_path) as (made, _, triton):
        published(tmp_path, "m", 2)
        triton.error = ServiceError("internal", "it answers otherwise")
        monkeypatch.setattr(rollouts, "_stamp", lambda folder: folder.joinpath("gone").stat())
        with pytest.raises(FileNotFoundError):
            await made.follow()


async def test_a_repository_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "PATIENCE_S", 0.05)
    asked, answers = list[int](), threading.Event()
    async with following(tmp_path) as (made, registry, triton):
        wanted = registry.wanted

        def slow() -> dict[str, list[Path]]:
            asked.append(1)
            answers.wait(30)
            return wanted()

        monkeypatch.setattr(registry, "wanted", slow)
        published(tmp_path, "m", 2)
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                await made.follow()
            assert (len(asked), triton.told) == (1, [])
            answers.set()
            await until(lambda: bool(made._looking and made._looking.done()))
            for _ in range(2):
                await made.follow()
        assert registry.get("m").contract.version == 2
        told = [record.getMessage() for record in caplog.records if str(tmp_path) in record.getMessage()]
        assert told == [
            f"{tmp_path} does not answer; the loaded models are still served",
            f"{tmp_path} answers again",
        ]
        answers.clear()
        await made.follow()
        assert made._looking
        await asyncio.wait_for(made.close(), 10)
        assert made._looking.cancelled()
        answers.set()
