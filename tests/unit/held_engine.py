"""An engine whose time the test controls, and the queue in front of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
from eca_service.batching import Batcher
from eca_service.contract import PROBABILITIES
from eca_service.costs import Costs
from eca_service.tracing import Trace
from eca_service.waiting import Pixels, Row, Tensors, Turn


class Engine:
    """Answers each image with its own first pixel; holds every batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []
        self.deadlines: list[float] = []
        self.cancelled = 0
        self.stubborn = False  # ends its work all the same
        self.rows = 0  # answers more than asked for
        self.error: BaseException | None = None

    async def run(
        self, images: Sequence[Pixels], deadline: float, further: tuple[str, ...], traces: Sequence[Trace]
    ) -> Tensors:
        """Answers one batch, as a `batching.Run`."""
        self.batches.append([int(image[0]) for image in images])
        self.gates.append(asyncio.Event())
        self.deadlines.append(deadline)
        try:
            await self.gates[-1].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.stubborn:
                await self.gates[-1].wait()
            raise
        if self.error:
            raise self.error
        values = np.array([[float(image[0])] for image in images] + [[0.0]] * self.rows, np.float32)
        return {PROBABILITIES: values, **dict.fromkeys(further, 2 * values)}

    def finish(self) -> None:
        """Lets the batch go that came first."""
        next(gate for gate in self.gates if not gate.is_set()).set()


class Clock:
    """One that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def pixels(value: int) -> Pixels:
    """An image whose first pixel is `value`."""
    return np.array([value], np.uint8)


class Greedy(Costs):
    """Full batches from the start, whatever they take."""

    def worthwhile(self, most: int) -> int:
        return most


def batcher(
    engine: Engine, max_batch: int = 4, slots: int = 1, now: Callable[[], float] = time.perf_counter
) -> Batcher:
    """The queue in front of `engine`; its batches are full from the start."""
    made = Batcher("test", engine.run, max_batch, slots, now=now)
    made.costs = Greedy()
    return made


def far() -> float:
    """A deadline that no test meets."""
    return asyncio.get_running_loop().time() + 60


async def settle() -> None:
    """Lets all tasks go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


def submit(queue: Batcher, value: int, turn: Turn | None = None) -> asyncio.Task[Row]:
    """An image that waits for its answer, in a request of its own unless there is a `turn`."""
    return asyncio.create_task((turn or queue.turn(1)).submit(pixels(value), far()))
