"""What waits for an engine, in the order in which it is due: images, and requests whose images are still to come."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eca_service.errors import ServiceError
from eca_service.tracing import Trace

Pixels = NDArray[np.uint8]
Tensors = Mapping[str, NDArray[np.float32]]  # by name, each with one row an image
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


@dataclass(slots=True, eq=False)
class Entry:
    """One image uint8 [H, W, 3] that waits; `deadline` is of the event loop's clock, the other times of ours."""

    due: float
    pixels: Pixels
    deadline: float
    arrived: float
    future: asyncio.Future[Row]
    further: tuple[str, ...]
    trace: Trace | None


class Waiting:
    """Images by when they are due, and the turns of the requests that they are of.

    `pace_s` says what an image takes of the engine's time, in seconds; `arrived` is called after each that came.
    """

    def __init__(
        self, pace_s: Callable[[], float], arrived: Callable[[], None], now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.pace_s = pace_s
        self.now = now
        self.turns: set[Turn] = set()  # of which images are still to come
        self._arrived = arrived
        self._entries: list[Entry] = []  # by `due`

    def __len__(self) -> int:
        """Images that are here."""
        return len(self._entries)

    @property
    def coming(self) -> int:
        """Images of requests that were taken in, which are not decoded yet."""
        return sum(turn.coming for turn in self.turns)

    def turn(self, images: int, trace: Trace | None = None, first: bool = False) -> Turn:
        """The place of a request whose `images` images will be submitted one by one; to be used in a `with`.

        `first`: before all that waits.
        """
        return Turn(self, images, trace, first)

    def add(self, entry: Entry) -> None:
        """Takes an image in."""
        insort(self._entries, entry, key=_due)
        self._arrived()

    def ahead_of(self, due: float, pace_s: float) -> int:
        """Images that are due before one that is due then, where each of a request is due `pace_s` after the other."""
        ahead = bisect_right(self._entries, due, key=_due)
        for turn in self.turns:
            if turn.due <= due:
                ahead += min(turn.coming, 1 + int((due - turn.due) / pace_s))
        return ahead

    def take(self, most: int, largest: int, now: float, soonest: float) -> list[Entry]:
        """Up to `most` entries of the same outputs, those due first; without those that nobody awaits any more.

        What would be answered too late, with a deadline before `soonest`, gives its place to what would not. Where
        there is nothing else up to `largest` are tried: what was learnt of the engine's time may be wrong. `now` is of
        the event loop's clock.
        """
        batch: list[Entry] = []
        others: list[Entry] = []  # want other outputs than the first: theirs is the next batch
        doomed: list[Entry] = []
        wanted, taken = None, 0
        for entry in self._entries:
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
        self._entries[:taken] = others
        if not batch:
            wanted = doomed[0].further if doomed else ()
            batch = [entry for entry in doomed if entry.further == wanted][: MOST_WITH_FURTHER if wanted else None]
            batch = batch[:largest]
        for entry in doomed:
            if entry not in batch:
                entry.future.set_exception(ServiceError("deadline_exceeded", LATE))
        return batch


class Turn:
    """One request's place in the queue: when its next image is `due`, and how many of them are still `coming`."""

    __slots__ = ("_trace", "_waiting", "coming", "due")

    def __init__(self, waiting: Waiting, images: int, trace: Trace | None, first: bool) -> None:
        self._waiting = waiting
        self._trace = trace
        self.due = 0.0 if first else waiting.now()
        self.coming = images

    def __enter__(self) -> Turn:
        self._waiting.turns.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.turns.discard(self)

    def skip(self) -> None:
        """One image less is to come: it is here, or there is none."""
        self.coming -= 1
        if not self.coming:
            self._waiting.turns.discard(self)

    async def submit(self, pixels: Pixels, deadline: float, further: tuple[str, ...] = ()) -> Row:
        """The answer for one image; cancelling it takes the image out of the queue.

        `further` names outputs wanted beside the probabilities, the same for all images of one request.

        Raises deadline_exceeded, or what the engine's batch raised.
        """
        waiting = self._waiting
        future = asyncio.get_running_loop().create_future()
        entry = Entry(self.due, pixels, deadline, waiting.now(), future, further, self._trace)
        self.skip()
        self.due += waiting.pace_s()
        waiting.add(entry)
        return await entry.future


def _due(entry: Entry) -> float:
    return entry.due
