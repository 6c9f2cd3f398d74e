"""What refuses a request before an image is decoded, what is learnt of it, and when a failure makes a model suspect."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eca_service import admission
from eca_service.answers import Answer
from eca_service.cancellation import in_time
from eca_service.comparison import compare
from eca_service.contract import PROBABILITIES, Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.journal import Entry
from eca_service.oip import tensors
from eca_service.peers import Peers, make_board
from eca_service.readiness import Readiness
from eca_service.registry import Model
from eca_service.settings import Settings
from eca_service.triton.failures import NotLoaded
from PIL import Image

from tests.unit.image_files import encoded
from tests.unit.test_contract import CONTRACT

IMAGE = encoded(Image.new("RGB", (32, 32)))


class Engine:
    """Answers every batch once it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.images = 0

    async def infer(self, images: Sequence[Any], contract: Contract, *_: object) -> dict[str, Any]:
        self.images += len(images)
        await self.go.wait()
        return {PROBABILITIES: np.full((len(images), contract.classes), 1 / contract.classes, np.float32)}


@pytest.fixture
async def engine() -> Engine:
    return Engine()


def core_with(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Core:
    core = Core(Settings(repository=folder, **settings), Peers())
    monkeypatch.setattr(core.triton, "infer", engine.infer)
    return core


def model(folder: Path, name: str = "m") -> Model:
    return Model(CONTRACT.model_copy(update={"name": name}), folder)


async def classified(core: Core, folder: Path, images: int, within_s: float = 20.0) -> Answer:
    deadline = asyncio.get_running_loop().time() + within_s
    permit = core.enter(0, Entry("http"))
    try:
        return await asyncio.wait_for(core.classify(model(folder), [IMAGE] * images, 1, deadline, permit), 20)
    finally:
        permit.release()


async def all_sent(engine: Engine, images: int) -> None:
    while engine.images < images:
        await asyncio.sleep(0.01)


async def test_every_image_of_a_request_takes_room(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_with(engine, tmp_path, monkeypatch, max_inflight_images=4)
    three = asyncio.create_task(classified(core, tmp_path, 3))
    await asyncio.sleep(0)
    with pytest.raises(ServiceError, match="overloaded"):
        await classified(core, tmp_path, 2)
    one = asyncio.create_task(classified(core, tmp_path, 1))
    await all_sent(engine, 1)
    engine.go.set()
    assert [len(answer.results) for answer in await asyncio.gather(three, one)] == [3, 1]


async def test_an_answer_has_so_many_predictions_at_most(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million would hold up everybody while they are written; one image may have all of its classes."""
    core = core_with(engine, tmp_path, monkeypatch)
    engine.go.set()
    models = [model(tmp_path / name, name) for name in ("a", "b")]
    permit = core.enter(0, Entry("http"))
    deadline = asyncio.get_running_loop().time() + 20
    try:
        monkeypatch.setattr(admission, "MOST_PREDICTIONS", 3)
        for refused in (
            core.classify(models[0], [IMAGE] * 2, 2, deadline, permit),
            compare(core, models, IMAGE, [2, 2], deadline, permit),
        ):
            with pytest.raises(ServiceError, match="bad_request: the answer would hold 4 predictions, at most 3"):
                await refused
        assert len((await core.classify(models[0], [IMAGE] * 3, 1, deadline, permit)).results) == 3
        monkeypatch.setattr(admission, "MOST_PREDICTIONS", 1)
        (one,) = (await core.classify(models[0], [IMAGE], 2, deadline, permit)).results
        assert len(one.predictions) == 2
    finally:
        permit.release()
        await core.close()


async def test_images_that_would_be_answered_too_late_are_not_taken(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_with(engine, tmp_path, monkeypatch)
    core.engines.of(CONTRACT.model_copy(update={"name": "m"})).costs.learn(1, 0.1)
    first = asyncio.create_task(classified(core, tmp_path, 1))
    await all_sent(engine, 1)
    with pytest.raises(ServiceError, match="overloaded"):
        await classified(core, tmp_path, 40, within_s=2)
    few = asyncio.create_task(classified(core, tmp_path, 8, within_s=2))
    engine.go.set()
    assert len((await few).results) == 8
    await first
    assert engine.images == 9
    contract, now = model(tmp_path).contract, asyncio.get_running_loop().time()
    core.require_time(contract, 40, now + 0.5)  # nobody is ahead, so it is tried
    with pytest.raises(ServiceError, match="deadline_exceeded"):
        core.require_time(contract, 1, now)


async def test_a_comparison_takes_room_for_each_model(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_with(engine, tmp_path, monkeypatch, max_inflight_images=2)
    engine.go.set()
    models = [model(tmp_path, name) for name in "abc"]
    permit = core.enter(0, Entry("http"))
    with pytest.raises(ServiceError, match="overloaded"):
        await compare(core, models, IMAGE, [1] * 3, asyncio.get_running_loop().time() + 5, permit)
    permit.release()


async def test_a_comparison_counts_for_each_model(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_with(engine, tmp_path, monkeypatch, rate_limit=1, rate_burst=4, rate_by="address")
    engine.go.set()
    outcomes = []
    for _ in range(3):  # of four and what comes meanwhile; the second goes below it
        permit = core.enter(0, Entry("http"))
        deadline = asyncio.get_running_loop().time() + 5
        try:
            permit.entry.account = core.access.admit("", "10.0.0.1")
            await compare(core, [model(tmp_path, name) for name in "abc"], IMAGE, [1] * 3, deadline, permit)
            outcomes.append("answered")
        except ServiceError as error:
            outcomes.append(error.code)
        finally:
            permit.release()
    assert outcomes == ["answered", "answered", "rate_limited"]


async def test_the_error_of_an_image_does_not_hold_the_image(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its traceback, whose frames have all that they had: it stays as long as who is answered, or longer."""
    core = core_with(engine, tmp_path, monkeypatch)
    deadline = asyncio.get_running_loop().time() + 5
    permit = core.enter(0, Entry("http"))
    answer = await core.classify(model(tmp_path), [b"no image"] * 2, 1, deadline, permit)
    permit.release()
    assert [(error.code, error.__traceback__) for result in answer.results if (error := result.error)] == [
        ("unsupported_image_format", None)
    ] * 2


class Overflows(Engine):
    """Computes no numbers for white images, nor for any where it is the model "broken"."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.go.set()
        self.value = value

    async def infer(self, images: Sequence[Any], contract: Contract, *_: object) -> dict[str, Any]:
        answer = await super().infer(images, contract)
        for row, image in zip(answer[PROBABILITIES], images, strict=True):
            if contract.name == "broken" or image.max() > 0:
                row[-1] = self.value
        return answer


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_an_answer_that_is_no_number_is_that_image_s_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    core, white = core_with(Overflows(value), tmp_path, monkeypatch), encoded(Image.new("RGB", (32, 32), "white"))
    deadline = asyncio.get_running_loop().time() + 20
    permit = core.enter(0, Entry("http"))
    answer = await core.classify(model(tmp_path), [IMAGE, white, IMAGE], 1, deadline, permit)
    permit.release()
    said = "internal: m computed values for this image that are not finite"
    assert [str(result.error or "") for result in answer.results] == ["", said, ""]
    index, label = tensors(answer, 1, ["index", "label"])
    assert (index.flat(), label.flat()) == ([0, -1, 0], ["cat", f"error: {said}", "cat"])


async def test_a_model_that_computes_no_numbers_leaves_the_others_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_with(Overflows(np.nan), tmp_path, monkeypatch)
    good, broken = (model(tmp_path, name) for name in ("m", "broken"))
    deadline = asyncio.get_running_loop().time() + 20
    permit = core.enter(0, Entry("http"))
    first, second = (await compare(core, [good, broken], IMAGE, [1, 1], deadline, permit)).entries
    assert (first.error, str(second.error)) == (
        None,
        "internal: broken computed values for this image that are not finite",
    )
    with pytest.raises(ServiceError, match="internal: broken computed values for this image"):
        await compare(core, [broken], IMAGE, [1], deadline, permit)
    permit.release()


async def test_only_patient_callers_tell_of_lateness(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who allows hardly the engine's own time is late on the quickest machine."""
    core = core_with(engine, tmp_path, monkeypatch)
    costs = core.engines.of(CONTRACT.model_copy(update={"name": "m"})).costs
    for seconds, learnt in ((0.001, True), (5.0, False)):
        costs.learn(CONTRACT.max_batch, seconds)
        before = core.margin.share
        deadline = asyncio.get_running_loop().time() + 0.1
        with pytest.raises(ServiceError, match="deadline_exceeded"):
            await in_time(classified(core, tmp_path, 1, within_s=0.1), deadline)
        assert (core.margin.share < before) is learnt


@pytest.mark.parametrize("meanwhile", ["none is ready", "the other ends to be", "ready", "asked to end", "too long"])
async def test_beside_one_that_is_ready_none_listens_unready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    make_board(tmp_path / "board", 2)
    other, own = (Peers(index, tmp_path / "board") for index in (0, 1))
    other.listening = True
    other.tell(ready=meanwhile != "none is ready")
    (tmp_path / "repository").mkdir()
    core = Core(Settings(repository=tmp_path / "repository", triton_url="127.0.0.1:1"), own)
    monkeypatch.setattr("eca_service.core.PATIENCE_S", 0.5 if meanwhile == "too long" else 60)
    starting = asyncio.create_task(core.start())
    if meanwhile != "none is ready":
        await asyncio.sleep(0.3)
        assert (own.listening, starting.done()) == (False, False)
    if meanwhile == "the other ends to be":
        other.tell(ready=False)
    elif meanwhile == "ready":
        monkeypatch.setattr(Readiness, "ready", True)
    elif meanwhile == "asked to end":
        core.leaving = True
    await asyncio.wait_for(starting, 5)
    assert other.unready() == ([] if meanwhile == "ready" else [1])
    await core.close()


@pytest.mark.parametrize(
    ("code", "suspect"), [("internal", True), ("model_not_ready", True), ("overloaded", False), ("bad_request", False)]
)
async def test_who_fails_is_suspected(tmp_path: Path, code: str, suspect: bool) -> None:
    core = Core(Settings(repository=tmp_path), Peers())
    with pytest.raises(ServiceError), core.suspicious():
        raise ServiceError(code, "")
    assert core.readiness._wake.is_set() == suspect
    await core.close()


@pytest.mark.parametrize(
    ("named", "there", "classes", "answered_by"),
    [
        (None, False, CONTRACT.classes, 1),
        (2, False, CONTRACT.classes, None),  # the request wanted that one
        (None, True, CONTRACT.classes, None),  # it is not loaded yet, or again
        (None, False, 0, None),  # of fewer classes than were asked for
    ],
)
async def test_what_is_served_instead_answers_where_the_version_was_deleted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: int | None,
    there: bool,
    classes: int,
    answered_by: int | None,
) -> None:
    class Unloaded(Engine):
        async def infer(self, images: Sequence[Any], contract: Contract, *_: object) -> dict[str, Any]:
            if contract.version == 2:
                raise NotLoaded("model_not_ready", "version 2 is not at ready state")
            return await super().infer(images, contract)

    engine = Unloaded()
    engine.go.set()
    core = core_with(engine, tmp_path, monkeypatch)
    deleted, other = (
        Model(CONTRACT.model_copy(update={"version": version, **more}), tmp_path / str(version))
        for version, more in ((2, {}), (1, {"classes": classes}))
    )
    if there:
        deleted.folder.mkdir()
    core.registry.models[CONTRACT.name] = deleted
    permit = core.enter(0, Entry("http"))
    deadline = asyncio.get_running_loop().time() + 20
    work = asyncio.create_task(core.classify(deleted, [IMAGE] * 2, 1, deadline, permit, named))
    await asyncio.sleep(0.3)
    assert work.done() == (named is not None or there), "only that is awaited which comes soon"
    core.registry.models[CONTRACT.name] = other
    if answered_by:
        answer = await work
        assert (answer.contract.version, len(answer.results), permit.images) == (answered_by, 2, 2)
    else:
        with pytest.raises(NotLoaded):
            await work


async def test_what_comes_in_its_place_is_not_awaited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr("eca_service.core.INSTEAD_S", 0.2)
    core = core_with(engine, tmp_path, monkeypatch)
    deleted = model(tmp_path / "deleted")
    core.registry.models["m"] = deleted
    assert await core._instead_of(deleted, asyncio.get_running_loop().time() + 20) is None
    del core.registry.models["m"]
    assert await core._instead_of(deleted, asyncio.get_running_loop().time() + 20) is None
