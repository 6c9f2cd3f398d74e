"""Golden answers, asked through the queue that callers' images wait in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eca_service import engines
from eca_service.contract import PROBABILITIES, Contract
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.registry import Model, Registry
from eca_service.tracing import Tracing

from tests.load import noop

PATIENCE_S = 0.4


class Engine:
    """Takes `batch_s` for each batch, and gives each image the first golden image's answer."""

    def __init__(self, batch_s: float) -> None:
        self.batch_s = batch_s
        self.error: BaseException | None = None

    async def infer(self, images: Sequence[Any], contract: Contract, *_: object) -> dict[str, Any]:
        await asyncio.sleep(self.batch_s)
        if self.error:
            raise self.error
        return {PROBABILITIES: np.asarray(contract.golden.probabilities[:1] * len(images), np.float32)}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """One that takes one image a batch, and is given up early."""
    monkeypatch.setattr(engines, "GOLDEN_S", PATIENCE_S)
    noop.publish(tmp_path, max_batch=1, crop=8)
    return Registry(tmp_path, None).get(noop.NAME)


def queue(engine: Engine) -> Engines:
    made: Any = engine
    return Engines(made, Tracing(None))


async def test_golden_images_do_not_wait_behind_callers(model: Model) -> None:
    """How many of these wait says nothing of the engine."""
    made, far = queue(Engine(0.02)), asyncio.get_running_loop().time() + 60
    batcher, pixels = made.of(model.contract), np.zeros((8, 8, 3), np.uint8)
    callers = [asyncio.create_task(batcher.submit(pixels, far)) for _ in range(200)]  # four seconds
    await asyncio.sleep(0.1)
    await made.golden(model, turn=0)
    assert sum(caller.done() for caller in callers) < 30
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_an_engine_that_answers_others_is_given_time(model: Model) -> None:
    """One batch is with the engine already, and takes nearly as long as it may."""
    made, far = queue(Engine(0.75 * PATIENCE_S)), asyncio.get_running_loop().time() + 60
    pixels = np.zeros((8, 8, 3), np.uint8)
    caller = asyncio.create_task(made.of(model.contract).submit(pixels, far))
    await asyncio.sleep(0)
    await made.golden(model, turn=0)
    assert caller.done()


async def test_one_that_answers_nobody_is_not(model: Model) -> None:
    made, began = queue(Engine(60)), asyncio.get_running_loop().time()
    with pytest.raises(ServiceError, match="deadline_exceeded: noop did not give its golden answers within"):
        await made.golden(model, turn=0)
    assert asyncio.get_running_loop().time() - began < 10 * PATIENCE_S
    await asyncio.sleep(0.01)
    assert made.of(model.contract).idle, "nobody awaits it any more"


async def test_a_call_that_is_cut_off_is_a_failure_and_ends_nobody(model: Model) -> None:
    """gRPC cancels the calls of a channel that is closed."""
    engine = Engine(0)
    engine.error = asyncio.CancelledError()
    with pytest.raises(ServiceError, match="backend_unavailable: the server has left"):
        await queue(engine).golden(model, turn=0)
