"""Load: open (planned starts, whatever the service does) or closed (so many callers, each waiting for its answer).

Own code, since none of the generators at hand does all that is needed: arrivals that are Poisson, latency counted from
the planned start, bodies that differ, models that take turns in one process, HTTP and gRPC. README.md says which were
looked at; `generator_cost` measures what this one costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.load.arrivals import Pacer
from tests.load.protocols import Reply, Way

PATIENCE_S = 20.0  # for answers after the last start
PAUSE_S = 0.02  # of a caller in closed load whose request failed: a dead service is not hammered


@dataclass(slots=True)
class Block:
    """What one stretch of load saw. `latencies_s` are those of answers that were right, in the order they came.

    From the planned start in open load; `late_s` says how much of it was the generator's own delay. `stages` holds
    milliseconds by stage, one for each answer that told them. In closed load `meanwhile` counts, for each latency, the
    other callers' answers that came between asking and answer: in the order of coming as many as there are others.
    """

    seconds: float = 0.0
    sent: int = 0
    latencies_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    stages: dict[str, list[float]] = field(default_factory=dict)
    meanwhile: list[int] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Right answers a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def take(self, reply: Reply, latency_s: float) -> None:
        """Counts one reply."""
        if reply.code != "ok":
            self.fail(reply.code)
            return
        self.latencies_s.append(latency_s)
        for stage, spent in reply.stages.items():
            self.stages.setdefault(stage, []).append(spent)

    def fail(self, code: str, count: int = 1) -> None:
        """Counts failures."""
        self.failures[code] = self.failures.get(code, 0) + count


async def open_loop(way: Way, model: str, starts: Sequence[float], images: int, seed: int = 0) -> Block:
    """Sends one request at each of `starts`, about images drawn at random from `images`; waits PATIENCE_S at most."""
    block, tasks = Block(sent=len(starts)), set[asyncio.Task[None]]()
    picks = np.random.default_rng(seed).integers(0, images, len(starts)).tolist()
    began = time.perf_counter() + 0.01
    all_begun = asyncio.Event()

    async def one(index: int) -> None:
        planned = began + starts[index]
        block.late_s.append(time.perf_counter() - planned)
        reply = await way.send(model, picks[index])
        block.take(reply, time.perf_counter() - planned)

    def begin(index: int) -> None:
        tasks.add(asyncio.ensure_future(one(index)))
        if index == len(starts) - 1:
            all_begun.set()

    with Pacer(starts, began, begin):
        if starts:
            await all_begun.wait()
    await _await_all(tasks, block)
    block.seconds = time.perf_counter() - began
    return block


async def closed_loop(
    way: Way, model: str, callers: int, seconds: float, images: int, most: int = 1_000_000, seed: int = 0
) -> Block:
    """`callers` ask one after the other for `seconds`, `most` requests at most."""
    block = Block()
    picks = np.random.default_rng(seed).integers(0, images, 4096).tolist()
    began = time.perf_counter()

    async def caller() -> None:
        while (started := time.perf_counter()) - began < seconds and block.sent < most:
            block.sent += 1
            before = len(block.latencies_s)
            reply = await way.send(model, picks[block.sent % len(picks)])
            block.take(reply, time.perf_counter() - started)
            if reply.code == "ok":
                block.meanwhile.append(len(block.latencies_s) - before - 1)
            else:
                await asyncio.sleep(PAUSE_S)

    await _await_all({asyncio.ensure_future(caller()) for _ in range(callers)}, block, seconds)
    block.seconds = time.perf_counter() - began
    return block


async def _await_all(tasks: set[asyncio.Task[None]], block: Block, besides_s: float = 0.0) -> None:
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=besides_s + PATIENCE_S)
    for task in late:
        task.cancel()
    if late:
        await asyncio.gather(*late, return_exceptions=True)
        block.fail("no answer", len(late))
    for task in done:
        task.result()  # an error of ours is an error
