"""Callers that hang up just as they are answered: the embedded Triton dies of some hundred calls cancelled so."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import numpy as np
from eca_service.backend import Triton
from eca_service.contract import read

from tests.integration.callers import call
from tests.integration.conftest import MODEL, Service, golden_png, triton_of

HANG_UPS = 1000
CALLERS = 2
IMAGES = [np.zeros((32, 32, 3), np.uint8)]


async def test_hang_ups_around_the_answer_harm_nobody(service: Service, repository: Path) -> None:
    pid, contract = triton_of(service), read(repository / MODEL / "1")
    triton = Triton(f"127.0.0.1:{service.triton_port}")
    loop, draw = asyncio.get_running_loop(), random.Random(1)
    waits: list[float] = []

    async def ask() -> None:
        started = time.perf_counter()
        await triton.infer(IMAGES, contract, loop.time() + 10)
        waits.append(time.perf_counter() - started)

    async def hang_up() -> None:
        while len(outcomes) < HANG_UPS and Path(f"/proc/{pid}").exists():
            task = asyncio.create_task(ask())
            await asyncio.sleep(draw.uniform(0, 2 * usual_s))
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            outcomes.append(outcome)

    outcomes: list[BaseException | None] = []
    try:
        await triton.fleet.load(contract, repository / MODEL, {1})
        for _ in range(20):
            await ask()
        usual_s = sorted(waits)[10]
        await asyncio.gather(*(hang_up() for _ in range(CALLERS)))
    finally:
        await triton.close()
    assert triton_of(service) == pid
    gone = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert HANG_UPS / 10 < gone < len(outcomes), "some left before their answer, some after it"
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert call("rest", service, MODEL, [golden_png(repository, MODEL)]).code == "ok"
