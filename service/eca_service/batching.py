"""Batch when busy: a lone image leaves at once, and what waits while the engine is busy leaves together."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eca_service import metrics
from eca_service.contract import PROBABILITIES
from eca_service.errors import ServiceError
from eca_service.tracing import Trace

Pixels = NDArray[np.uint8]
Tensors = Mapping[str, NDArray[np.float32]]  # by name, each with one row an image
Run = Callable[[Sequence[Pixels], float, tuple[str, ...], Sequence[Trace]], Awaitable[Tensors]]
MOST_WITH_FURTHER = 8  # images in a batch that wants further outputs: feature maps are large
LATE = "the request's deadline passed before its images were classified"


@dataclass(frozen=True, slots=True)
class Row:
    """One image's answer: probabilities float32 [K], and the seconds it waited and the engine took.

    `began` is when its batch left, by time.perf_counter's clock: the event loop's has whole milliseconds. `further`
    holds the other outputs that were asked for, by name.
    """

    probabilities: NDArray[np.float32]
    began: float
    queue_s: float
    infer_s: float
    further: Tensors = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    pixels: Pixels
    deadline: float
    arrived: float
    future: asyncio.Future[Row]
    further: tuple[str, ...]
    trace: Trace | None


@dataclass(slots=True)
class Totals:
    """What a batcher has done since it was made: counts, seconds summed over images, and when it last answered."""

    images: int = 0
    batches: int = 0
    failed: int = 0
    queue_s: float = 0.0
    infer_s: float = 0.0
    last_s: float = 0.0


class Costs:
    """Seconds that a batch takes by its size: an exponential mean for each power of two, learnt from what ran."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._known: dict[int, float] = {}

    def learn(self, size: int, seconds: float) -> None:
        """Takes one batch into account."""
        bucket = (size - 1).bit_length()
        before = self._known.get(bucket, seconds)
        self._known[bucket] = before + self._weight * (seconds - before)

    def seconds(self, size: int) -> float:
        """What a batch of `size` images will take; of sizes not seen yet, what the next smaller one took."""
        bucket = (size - 1).bit_length()
        smaller = [known for known in self._known if known <= bucket]
        nearest = max(smaller) if smaller else min(self._known, default=None)
        return 0.0 if nearest is None else self._known[nearest]


class Batcher:
    """The queue in front of one engine. Requests take turns, so that a large one does not starve the others.

    `run` answers a batch: n images uint8 [H, W, 3], a deadline of the event loop's clock, the names of the outputs
    wanted beside the probabilities, the traces that the images belong to. Images that want the same outputs share a
    batch; the others wait their turn. `slots` batches, each of at most `max_batch` images, are with the engine at once.
    """

    def __init__(self, name: str, run: Run, max_batch: int, slots: int) -> None:
        self.max_batch = max_batch
        self.slots = slots
        self.costs = Costs()
        self.totals = Totals()
        self._run = run
        self._queues: OrderedDict[object, deque[_Entry]] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._depth = metrics.queue_depth.labels(name)
        self._batch_size = metrics.batch_size.labels(name)

    async def submit(
        self,
        caller: object,
        pixels: Pixels,
        deadline: float,
        further: tuple[str, ...] = (),
        trace: Trace | None = None,
    ) -> Row:
        """The answer for one image of `caller`'s; cancelling it takes the image out of the queue.

        `further` names outputs wanted beside the probabilities, the same for all images of one caller.

        Raises deadline_exceeded, or what the engine's batch raised.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(pixels, deadline, time.perf_counter(), loop.create_future(), further, trace)
        self._queues.setdefault(caller, deque()).append(entry)
        self._count(1)
        self._dispatch()
        return await entry.future

    def wait_s(self, images: int = 1) -> float:
        """Predicted seconds until `images` more images would be answered."""
        waiting = self._waiting + images
        rounds, rest = divmod(waiting, self.max_batch * self.slots)
        started = self.costs.seconds(self.max_batch) / 2 if len(self._running) >= self.slots else 0.0
        last = self.costs.seconds(-(-rest // self.slots)) if rest else 0.0
        return started + rounds * self.costs.seconds(self.max_batch) + last

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._running and not self._waiting

    def _count(self, change: int) -> None:
        self._waiting += change
        self._depth.set(self._waiting)

    def _dispatch(self) -> None:
        while len(self._running) < self.slots and (batch := self._next()):
            task = asyncio.create_task(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()

    def _next(self) -> list[_Entry]:
        """Up to `max_batch` entries, one of each request in turn; without those that nobody awaits any more."""
        now = asyncio.get_running_loop().time()
        batch: list[_Entry] = []
        others: list[tuple[object, deque[_Entry]]] = []  # want other outputs than the first: theirs is the next batch
        most = self.max_batch
        while self._queues and len(batch) < most:
            caller, queue = self._queues.popitem(last=False)
            if batch and queue[0].further != batch[0].further:
                others.append((caller, queue))
                continue
            entry = queue.popleft()
            self._count(-1)
            if queue:
                self._queues[caller] = queue
            if entry.future.done():
                continue
            if entry.deadline <= now:
                entry.future.set_exception(ServiceError("deadline_exceeded", LATE))
                continue
            batch.append(entry)
            if entry.further:
                most = min(self.max_batch, MOST_WITH_FURTHER)
        for caller, queue in reversed(others):
            self._queues[caller] = queue
            self._queues.move_to_end(caller, last=False)
        return batch

    async def _answer(self, batch: list[_Entry]) -> None:
        task = asyncio.current_task()
        assert task is not None
        left = len(batch)

        def gone(future: asyncio.Future[Row]) -> None:
            nonlocal left
            left -= future.cancelled()
            if left == 0:
                task.cancel()  # nobody awaits this batch any more

        for entry in batch:
            entry.future.add_done_callback(gone)
        began = time.perf_counter()
        self._batch_size.observe(len(batch))
        try:
            latest = max(entry.deadline for entry in batch)
            traces = [entry.trace for entry in batch if entry.trace]
            answer = dict(await self._run([entry.pixels for entry in batch], latest, batch[0].further, traces))
            spent = time.perf_counter() - began
            for tensor in answer.values():
                if len(tensor) != len(batch):
                    raise ServiceError("internal", f"the engine gave {len(tensor)} answers for {len(batch)} images")
            rows = answer.pop(PROBABILITIES)
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            return
        except Exception as error:
            self.totals.failed += len(batch)
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self.costs.learn(len(batch), spent)
        self.totals.images += len(batch)
        self.totals.batches += 1
        self.totals.infer_s += spent * len(batch)
        self.totals.queue_s += sum(began - entry.arrived for entry in batch)
        self.totals.last_s = time.time()
        for index, entry in enumerate(batch):
            if not entry.future.done():
                further = {name: tensor[index] for name, tensor in answer.items()}
                entry.future.set_result(Row(rows[index], began, began - entry.arrived, spent, further))
