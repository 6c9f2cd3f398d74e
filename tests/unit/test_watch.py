"""The watch over models: nothing that happens in one of its turns is its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from eca_service import disk, metrics, readiness, rollout
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.peers import Peers
from eca_service.readiness import Readiness
from eca_service.registry import Registry
from eca_service.rollout import Rollout

from tests.unit.test_registry import published


class Nothing:
    """Stands for fleet and engines. Golden answers need a thread for their file, and fail while `error` is set."""

    slots = 1
    serving = frozenset[str]()
    error: Exception | None = None

    async def look(self) -> bool:
        return False

    async def load(self, *_: object) -> int:
        return 1

    async def held(self, _: str) -> set[int]:
        return set()

    async def keep(self, *_: object) -> None:
        pass

    def of(self, _: object) -> Nothing:
        return self

    def drop(self, _: object) -> None:
        pass

    async def golden(self, *_: object) -> None:
        await disk.call(lambda: None)
        if self.error:
            raise self.error


@asynccontextmanager
async def watching(folder: Path, nothing: Any) -> AsyncIterator[tuple[Readiness, asyncio.Task[None]]]:
    published(folder, "m")
    registry = Registry(folder, None)
    made = Readiness(registry, nothing, nothing, Rollout(registry, nothing, nothing, 0), Peers())
    task = asyncio.create_task(made.watch())
    try:
        yield made, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def becomes(made: Readiness, ready: bool) -> None:
    for _ in range(1000):
        if made.ready is ready:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(made.reasons)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_EVERY_S", "FOLLOW_EVERY_S", "RETRY_EVERY_S"):
        monkeypatch.setattr(readiness, name, 0.01)


async def test_one_that_loads_for_long_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback waited for it, and readiness was as before it began."""
    nothing, loaded, ill = Nothing(), asyncio.Event(), set[str]()
    for module in (readiness, rollout):
        monkeypatch.setattr(module, "CHECK_S" if module is readiness else "TAKE_S", 0.05)

    async def load(contract: Contract, *_: object) -> int:
        if (contract.name, contract.version) == ("m", 2):
            await loaded.wait()
        return 1

    async def golden(model: Any, _turn: object = None) -> None:
        if model.contract.name in ill:
            raise ServiceError("backend_unavailable", "it is ill")

    monkeypatch.setattr(nothing, "load", load)
    monkeypatch.setattr(nothing, "golden", golden)
    published(tmp_path, "n")
    async with watching(tmp_path, nothing) as (made, task):
        await becomes(made, True)
        published(tmp_path, "m", 2)
        await asyncio.sleep(0.2)
        for one in ("m", "n"):
            ill.add(one)
            await becomes(made, False)
            assert one in made.reasons
            ill.clear()
            await becomes(made, True)
        published(tmp_path, "n", 2)
        for _ in range(500):
            if made._registry.models["n"].contract.version == 2:
                break
            await asyncio.sleep(0.01)
        assert {name: one.contract.version for name, one in made._registry.models.items()} == {"m": 1, "n": 2}
        loaded.set()
        for _ in range(500):
            if made._registry.models["m"].contract.version == 2:
                break
            await asyncio.sleep(0.01)
        assert made._registry.models["m"].contract.version == 2
        await becomes(made, True)
        assert {folder.name for folder in made._golden} >= {"2"}
        assert not task.done()


async def test_one_that_is_refused_is_loaded_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each load may take as long as one that succeeds; and is told once, though its reason has another id each time."""
    nothing, loads = Nothing(), list[float]()
    monkeypatch.setattr(rollout, "FIRST_PAUSE_S", 0.1)

    async def load(*_: object) -> int:
        loads.append(asyncio.get_running_loop().time())
        raise ServiceError("internal", f"the model fails in process {len(loads)}: {uuid.uuid4()}")

    monkeypatch.setattr(nothing, "load", load)
    async with watching(tmp_path, nothing) as (made, _):
        await asyncio.sleep(2.0)
        assert not made.ready
        assert 4 <= len(loads) <= 6, "after 0.1, 0.2, 0.4, 0.8 s"
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
        (tmp_path / "m" / "1" / "more").touch()
        before = len(loads)
        for _ in range(200):
            if len(loads) > before:
                break
            await asyncio.sleep(0.01)
        assert len(loads) == before + 1, "its files are others"


async def test_why_an_older_version_was_not_ready_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would not be ready, for a while, when it is served again."""
    nothing = Nothing()

    async def golden(model: Any, _turn: object = None) -> None:
        if model.contract.version == 1:
            raise ServiceError("internal", "it answers otherwise")

    monkeypatch.setattr(nothing, "golden", golden)
    async with watching(tmp_path, nothing) as (made, _):
        for _ in range(1000):
            if made._rollout.was_refused(tmp_path / "m" / "1"):
                break
            await asyncio.sleep(0.01)
        assert made.reasons == {"m": "it answers otherwise"}
        published(tmp_path, "m", 2)
        await becomes(made, True)
        assert made._registry.get("m").contract.version == 2
        for _ in range(1000):
            if not made._reasons:
                break
            await asyncio.sleep(0.01)
        assert made._reasons == {}
        made._rollout.accept(tmp_path / "m" / "1")


@pytest.mark.parametrize("error", [None, ServiceError("internal", "it answers otherwise")])
async def test_what_one_answers_that_was_left_meanwhile_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    caplog.set_level(logging.INFO)
    nothing, asked, answers = Nothing(), asyncio.Event(), asyncio.Event()

    async def golden(model: Any, _turn: object = None) -> None:
        if model.contract.version == 1:
            asked.set()
            await answers.wait()
            if error:
                raise error

    monkeypatch.setattr(nothing, "golden", golden)
    async with watching(tmp_path, nothing) as (made, _):
        await asyncio.wait_for(asked.wait(), 30)
        older = made._checking[tmp_path / "m" / "1"]
        published(tmp_path, "m", 2)
        await becomes(made, True)
        answers.set()
        await asyncio.wait({older}, timeout=30)
        assert older.done()
        assert metrics.registry.get_sample_value("eca_model_ready", {"model": "m", "version": "1"}) is None
        assert not made._rollout.was_refused(tmp_path / "m" / "1")
        assert "m version 1 is ready" not in caplog.text
        assert "m is not ready" not in caplog.text


async def test_no_thread_can_be_begun_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(tmp_path, Nothing()) as (made, task):
        await becomes(made, True)
        with monkeypatch.context() as patch:

            def refuse(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", refuse)
            await becomes(made, False)
            await asyncio.sleep(0.1)
        await becomes(made, True)
        assert not task.done()


async def test_the_files_of_a_version_that_was_never_golden_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Nothing()
    nothing.error = ServiceError("model_not_ready", "golden.npy cannot be read: Input/output error")
    with monkeypatch.context() as patch:

        def fail(_: Path) -> Any:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(rollout, "_stamp", fail)
        async with watching(tmp_path, nothing) as (made, task):
            for _ in range(1000):
                if "why could not be found out" in caplog.text:
                    break
                await asyncio.sleep(0.01)
            assert "m is not ready, and why could not be found out" in caplog.text
            nothing.error = None
            await becomes(made, True)
            assert not task.done()


async def test_callers_are_told_why_but_not_where_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing, turns = Nothing(), list[int | None]()
    nothing.error = ServiceError("backend_unavailable", f"{tmp_path}/m/1/model.onnx cannot be read")

    async def golden(_: Any, turn: int | None) -> None:
        turns.append(turn)
        if nothing.error:
            raise nothing.error

    monkeypatch.setattr(nothing, "golden", golden)

    def told() -> float | None:
        return metrics.registry.get_sample_value("eca_model_ready", {"model": "m", "version": "1"})

    async with watching(tmp_path, nothing) as (made, _):
        while len(turns) < 3:
            await asyncio.sleep(0.01)
        assert (made.reasons, told()) == ({"m": "m/1/model.onnx cannot be read"}, 0)
        assert (made.is_ready("m"), made.is_ready("n")) == (False, False)
        nothing.error = None
        await becomes(made, True)
        assert (made.is_ready("m"), told()) == (True, 1)
        assert set(turns) == {None}, "all golden images, until they are right"
        before = len(turns)
        while len(turns) < before + 3:
            await asyncio.sleep(0.01)
        first, second, third = (turn or 0 for turn in turns[before : before + 3])
        assert 0 < first < second < third, "then one after the other"


async def test_a_request_that_failed_has_all_asked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing, turns = Nothing(), list[int | None]()

    async def golden(_: Any, turn: int | None) -> None:
        turns.append(turn)

    monkeypatch.setattr(nothing, "golden", golden)
    async with watching(tmp_path, nothing) as (made, _):
        for name in ("CHECK_EVERY_S", "FOLLOW_EVERY_S"):
            monkeypatch.setattr(readiness, name, 60.0)
        await becomes(made, True)
        await asyncio.sleep(0.1)
        before = len(turns)
        made.suspect()
        await asyncio.sleep(0.1)
        assert turns[before:] == [None], "once"


def test_a_service_without_models_is_not_ready(tmp_path: Path) -> None:
    registry, nothing = Registry(tmp_path, None), cast(Any, Nothing())
    assert not Readiness(registry, nothing, nothing, Rollout(registry, nothing, nothing, 0), Peers()).ready
