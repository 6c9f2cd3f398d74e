"""Batch when busy: a lone image leaves at once, and what waits while the engine is busy leaves together."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right, insort
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eca_service import metrics
from eca_service.contract import PROBABILITIES
from eca_service.costs import Costs
from eca_service.errors import ServiceError
from eca_service.tracing import Trace

Pixels = NDArray[np.uint8]
Tensors = Mapping[str, NDArray[np.float32]]  # by name, each with one row an image
Run = Callable[[Sequence[Pixels], float, tuple[str, ...], Sequence[Trace]], Awaitable[Tensors]]
MOST_WITH_FURTHER = 8  # images in a batch that wants further outputs: feature maps are large
LEAST_OF_THE_COST = 0.8  # a batch is hardly ever done in less of what it is known to take
UNKNOWN_COST_S = 0.01  # of an image, before any was seen
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


@dataclass(slots=True, eq=False)
class _Entry:
    due: float
    pixels: Pixels
    deadline: float
    arrived: float
    future: asyncio.Future[Row]
    further: tuple[str, ...]
    trace: Trace | None


@dataclass(slots=True, eq=False)
class _Batch:
    """`began` is when the engine took it: as it was sent, or as a batch before it ended; `ends` is the prediction."""

    entries: list[_Entry]
    began: float
    ends: float


@dataclass(slots=True)
class Totals:
    """What a batcher has done since it was made: counts, seconds summed over images, and when it last answered."""

    images: int = 0
    batches: int = 0
    failed: int = 0
    queue_s: float = 0.0
    infer_s: float = 0.0
    last_s: float = 0.0


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

    def __init__(self, name: str, run: Run, max_batch: int, slots: int, threads: int = 1) -> None:
        self.max_batch = max_batch
        self.slots = slots
        self.threads = threads
        self.costs = Costs()
        self.totals = Totals()
        self._run = run
        self._queue: list[_Entry] = []  # by `due`
        self._turns: set[Turn] = set()
        self._running: dict[asyncio.Task[None], _Batch] = {}
        self._ahead: _Batch | None = None  # the one of them that the engine has not begun
        self._depth = metrics.queue_depth.labels(name)
        self._batch_size = metrics.batch_size.labels(name)

    def turn(self, images: int, trace: Trace | None = None) -> Turn:
        """The place of a request whose `images` images will be submitted one by one; to be used in a `with`."""
        return Turn(self, images, trace)

    async def submit(
        self, pixels: Pixels, deadline: float, further: tuple[str, ...] = (), trace: Trace | None = None
    ) -> Row:
        """The answer for a request of one image, as `Turn.submit` gives it."""
        with self.turn(1, trace) as turn:
            return await turn.submit(pixels, deadline, further)

    def wait_s(self, images: int = 1) -> float:
        """Predicted seconds until a request of `images` images that came now would be answered."""
        pace_s = self.pace_s()
        due = time.perf_counter() + (images - 1) * pace_s
        waiting = bisect_right(self._queue, due, key=_due) + images
        for turn in self._turns:  # whose images are still being decoded
            if turn.coming and turn.due <= due:
                waiting += min(turn.coming, 1 + int((due - turn.due) / pace_s))
        most = self._most
        rounds, rest = divmod(waiting, most * self.slots)
        last = self.costs.seconds(-(-rest // self.slots)) if rest else 0.0
        full = most * self.costs.each(most)
        return max(0.0, self._free_at() - time.perf_counter()) + rounds * full + last

    def pace_s(self) -> float:
        """Seconds of the engine's time that an image takes when it is busy."""
        return self.costs.each(self._most) / self.slots or UNKNOWN_COST_S

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is on its way here and nothing runs."""
        return not self._running and not self._queue and not self.coming

    @property
    def coming(self) -> int:
        """Images of requests that were taken in, which are not decoded yet."""
        return sum(turn.coming for turn in self._turns)

    @property
    def _most(self) -> int:
        return self.costs.worthwhile(self.max_batch)

    def _free_at(self) -> float:
        """When the engine will begin a batch that is sent now; in the past where it is free."""
        ends = sorted(batch.ends for batch in self._running.values())
        return ends[len(ends) - self.slots] if len(ends) >= self.slots else 0.0

    def _dispatch(self) -> None:
        while self._has_room() and (entries := self._next()):
            now = time.perf_counter()  # uvloop's own clock counts whole milliseconds
            at_once = len(self._running) < self.slots or self._threads_idle(len(entries))
            starts = now if at_once else max(now, self._free_at())
            batch = _Batch(entries, now, starts + self.costs.seconds(len(entries)))
            if not at_once:
                self._ahead = batch
            task = asyncio.create_task(self._answer(batch))
            self._running[task] = batch
            task.add_done_callback(self._ended)
        self._depth.set(len(self._queue))

    def _has_room(self) -> bool:
        if len(self._running) < self.slots:
            return True
        if self._threads_idle(len(self._queue) + self.coming):
            return True
        return not self._ahead and 2 * len(self._queue) >= self._most

    def _threads_idle(self, images: int) -> bool:
        """Whether the engine has one for each of so many images more."""
        there = sum(len(batch.entries) for batch in self._running.values())
        return there + images <= self.slots * self.threads

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self._running.pop(task)
        if self._ahead:
            if self._ahead is not batch:
                self._ahead.began = time.perf_counter()
            self._ahead = None
        self._dispatch()

    def _next(self) -> list[_Entry]:
        """As many entries as are worthwhile, those due first; without those that nobody awaits any more.

        What would be answered too late gives its place to what would not. Where there is nothing else it is tried: what
        was learnt of the engine's time may be wrong.
        """
        now = asyncio.get_running_loop().time()
        soonest = now + LEAST_OF_THE_COST * self.costs.seconds(min(len(self._queue), self._most) or 1)
        batch: list[_Entry] = []
        others: list[_Entry] = []  # want other outputs than the first: theirs is the next batch
        doomed: list[_Entry] = []
        most, wanted, taken = self._most, None, 0
        for entry in self._queue:
            if len(batch) == most:
                break
            taken += 1
            if entry.future.done():
                continue
            if entry.deadline <= now:
                entry.future.set_exception(ServiceError("deadline_exceeded", LATE))
            elif wanted is not None and entry.further != wanted:
                others.append(entry)
            elif entry.deadline <= soonest:
                doomed.append(entry)
            else:
                batch.append(entry)
                wanted = entry.further
                if wanted:
                    most = min(most, MOST_WITH_FURTHER)
        self._queue[:taken] = others
        if not batch:
            wanted = doomed[0].further if doomed else ()
            batch = [entry for entry in doomed if entry.further == wanted][: MOST_WITH_FURTHER if wanted else None]
            batch = batch[: self.max_batch]
        for entry in doomed:
            if entry not in batch:
                entry.future.set_exception(ServiceError("deadline_exceeded", LATE))
        return batch

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
            spent = time.perf_counter() - batch.began
            for tensor in answer.values():
                if len(tensor) != len(entries):
                    raise ServiceError("internal", f"the engine gave {len(tensor)} answers for {len(entries)} images")
            rows = answer.pop(PROBABILITIES)
        except asyncio.CancelledError:
            for entry in entries:
                entry.future.cancel()
            return
        except Exception as error:
            self.totals.failed += len(entries)
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self.costs.learn(len(entries), spent)
        self.totals.images += len(entries)
        self.totals.batches += 1
        self.totals.infer_s += spent * len(entries)
        self.totals.queue_s += sum(batch.began - entry.arrived for entry in entries)
        self.totals.last_s = time.time()
        for index, entry in enumerate(entries):
            if not entry.future.done():
                further = {name: tensor[index] for name, tensor in answer.items()}
                entry.future.set_result(Row(rows[index], batch.began, batch.began - entry.arrived, spent, further))


class Turn:
    """One request's place in the queue: when its next image is `due`, and how many of them are still `coming`."""

    __slots__ = ("_batcher", "_trace", "coming", "due")

    def __init__(self, batcher: Batcher, images: int, trace: Trace | None) -> None:
        self._batcher = batcher
        self._trace = trace
        self.due = time.perf_counter()
        self.coming = images

    def __enter__(self) -> Turn:
        self._batcher._turns.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher._turns.discard(self)

    def skip(self) -> None:
        """One image will not come."""
        self.coming -= 1

    async def submit(self, pixels: Pixels, deadline: float, further: tuple[str, ...] = ()) -> Row:
        """The answer for one image; cancelling it takes the image out of the queue.

        `further` names outputs wanted beside the probabilities, the same for all images of one request.

        Raises deadline_exceeded, or what the engine's batch raised.
        """
        batcher = self._batcher
        future = asyncio.get_running_loop().create_future()
        entry = _Entry(self.due, pixels, deadline, time.perf_counter(), future, further, self._trace)
        self.coming -= 1
        self.due += batcher.pace_s()
        insort(batcher._queue, entry, key=_due)
        batcher._dispatch()
        return await entry.future


def _due(entry: _Entry) -> float:
    return entry.due
