"""Batch when busy: a lone image leaves at once, and what waits while the engine is busy leaves together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from eca_service import metrics
from eca_service.contract import PROBABILITIES
from eca_service.costs import Costs
from eca_service.errors import ServiceError
from eca_service.tracing import Trace
from eca_service.waiting import Entry, Pixels, Row, Tensors, Turn, Waiting

Run = Callable[[Sequence[Pixels], float, tuple[str, ...], Sequence[Trace]], Awaitable[Tensors]]
LEAST_OF_THE_COST = 0.8  # a batch is hardly ever done in less of what it is known to take
UNKNOWN_COST_S = 0.01  # of an image, before any was seen


@dataclass(slots=True, eq=False)
class _Batch:
    """`began` is when the engine took it: as it was sent, or as a batch before it ended; `ends` is the prediction."""

    entries: list[Entry]
    began: float
    ends: float


@dataclass(slots=True)
class Totals:
    """What an engine has done since its batcher was made: images, batches, when it last answered; and what became of
    the requests for classification, with their slowest images' seconds.
    """

    images: int = 0
    batches: int = 0
    last_s: float = 0.0
    answered: int = 0
    failed: int = 0
    queue_s: float = 0.0
    infer_s: float = 0.0


class Batcher:
    """The queue in front of one engine. First come first served, so that the time until an answer can be foretold.

    A large request does not starve the others: its images are due one after the other, each by an image's share of the
    engine's time later, as if it had sent them at the pace at which they can be answered.

    `run` answers a batch: n images uint8 [H, W, 3], a deadline of the event loop's clock, the names of the outputs
    wanted beside the probabilities, the traces that the images belong to. Images that want the same outputs share a
    batch; the others wait their turn. `slots` batches, each of at most `max_batch` images, are with the engine at once,
    and one more waits there, if it has half of what is worthwhile, so that no engine idles while an answer travels.
    An engine of several `threads`, each of which runs images of its own, gets more while all that is here leaves
    threads idle: to wait for each other would gain these few nothing.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        max_batch: int,
        slots: int,
        threads: int = 1,
        now: Callable[[], float] = time.perf_counter,  # uvloop's own clock counts whole milliseconds
    ) -> None:
        self.max_batch = max_batch
        self.slots = slots
        self.threads = threads
        self.costs = Costs()
        self.totals = Totals()
        self._run = run
        self._now = now
        self._waiting = Waiting(self.pace_s, self._dispatch, now)
        self._running: dict[asyncio.Task[None], _Batch] = {}
        self._ahead: _Batch | None = None  # the one of them that the engine has not begun
        self._depth = metrics.queue_depth.labels(name)
        self._batch_size = metrics.batch_size.labels(name)

    def turn(self, images: int, trace: Trace | None = None, first: bool = False) -> Turn:
        """The place of a request whose `images` images will be submitted one by one; to be used in a `with`.

        `first`: before all that waits.
        """
        return self._waiting.turn(images, trace, first)

    async def submit(
        self, pixels: Pixels, deadline: float, further: tuple[str, ...] = (), trace: Trace | None = None
    ) -> Row:
        """The answer for a request of one image, as `Turn.submit` gives it."""
        with self.turn(1, trace) as turn:
            return await turn.submit(pixels, deadline, further)

    def wait_s(self, images: int = 1) -> float:
        """Predicted seconds until a request of `images` images that came now would be answered."""
        pace_s = self.pace_s()
        due = self._now() + (images - 1) * pace_s
        waiting = self._waiting.ahead_of(due, pace_s) + images
        most = self._most
        rounds, rest = divmod(waiting, most * self.slots)
        last = self.costs.seconds(-(-rest // self.slots)) if rest else 0.0
        full = most * self.costs.each(most)
        return max(0.0, self._free_at() - self._now()) + rounds * full + last

    def pace_s(self) -> float:
        """Seconds of the engine's time that an image takes when it is busy."""
        return self.costs.each(self._most) / self.slots or UNKNOWN_COST_S

    @property
    def idle(self) -> bool:
        """Nothing runs, so that nothing waits either, and nothing is on its way here."""
        return not self._running and not self.coming

    @property
    def coming(self) -> int:
        """Images of requests that were taken in, which are not decoded yet."""
        return self._waiting.coming

    @property
    def _most(self) -> int:
        return self.costs.worthwhile(self.max_batch)

    def _free_at(self) -> float:
        """When the engine will begin a batch that is sent now; in the past where it is free."""
        ends = sorted(batch.ends for batch in self._running.values())
        return ends[len(ends) - self.slots] if len(ends) >= self.slots else 0.0

    def _dispatch(self) -> None:
        while self._has_room() and (entries := self._next()):
            now = self._now()
            at_once = len(self._running) < self.slots or self._threads_idle(len(entries))
            starts = now if at_once else max(now, self._free_at())
            batch = _Batch(entries, now, starts + self.costs.seconds(len(entries)))
            if not at_once:
                self._ahead = batch
            task = asyncio.create_task(self._answer(batch))
            self._running[task] = batch
            task.add_done_callback(self._ended)
        self._depth.set(len(self._waiting))

    def _has_room(self) -> bool:
        if len(self._running) < self.slots:
            return True
        if self._threads_idle(len(self._waiting) + self.coming):
            return True
        return not self._ahead and 2 * len(self._waiting) >= self._most

    def _threads_idle(self, images: int) -> bool:
        """Whether the engine has one for each of so many images more."""
        there = sum(len(batch.entries) for batch in self._running.values())
        return there + images <= self.slots * self.threads

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if self._ahead:
            self._ahead.began = self._now()
            self._ahead = None
        self._dispatch()

    def _next(self) -> list[Entry]:
        now, most = asyncio.get_running_loop().time(), self._most
        soonest = now + LEAST_OF_THE_COST * self.costs.seconds(min(len(self._waiting), most))
        return self._waiting.take(most, self.max_batch, now, soonest)

    async def _answer(self, batch: _Batch) -> None:
        entries = batch.entries
        task = asyncio.current_task()
        assert task is not None
        left = len(entries)

        def gone(future: asyncio.Future[Row]) -> None:
            nonlocal left
            left -= future.cancelled()
            if left == 0:
                task.cancel()  # nobody awaits this batch any more

        for entry in entries:
            entry.future.add_done_callback(gone)
        self._batch_size.observe(len(entries))
        try:
            latest = max(entry.deadline for entry in entries)
            traces = [entry.trace for entry in entries if entry.trace]
            answer = dict(await self._run([entry.pixels for entry in entries], latest, entries[0].further, traces))
            spent = self._now() - batch.began
            for tensor in answer.values():
                if len(tensor) != len(entries):
                    raise ServiceError("internal", f"the engine gave {len(tensor)} answers for {len(entries)} images")
            rows = answer.pop(PROBABILITIES)
        except asyncio.CancelledError:
            for entry in entries:
                entry.future.cancel()
            return
        except Exception as error:
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self.costs.learn(len(entries), spent)
        self.totals.images += len(entries)
        self.totals.batches += 1
        self.totals.last_s = time.time()
        for index, entry in enumerate(entries):
            if not entry.future.done():
                further = {name: tensor[index] for name, tensor in answer.items()}
                entry.future.set_result(Row(rows[index], batch.began, batch.began - entry.arrived, spent, further))
