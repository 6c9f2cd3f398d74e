"""Which of those that wait are the next batch, and how many are before another."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from eca_service.errors import ServiceError
from eca_service.waiting import MOST_WITH_FURTHER, Entry, Waiting

NOW, SOONEST, FAR = 100.0, 101.0, 160.0  # by the event loop's clock
FEATURES = ("features",)


def waiting() -> Waiting:
    """Of an engine that takes a second an image; its clock stands at 0.5."""
    return Waiting(lambda: 1.0, lambda: None, now=lambda: 0.5)


def entry(due: float, deadline: float = FAR, further: tuple[str, ...] = ()) -> Entry:
    future = asyncio.get_running_loop().create_future()
    return Entry(due, np.zeros((1, 1, 3), np.uint8), deadline, due, future, further, None)


def filled(*entries: Entry) -> Waiting:
    queue = waiting()
    for one in entries:
        queue.add(one)
    return queue


def take(queue: Waiting, most: int = 4, largest: int = 8) -> list[Entry]:
    return queue.take(most, largest, NOW, SOONEST)


def late(one: Entry) -> bool:
    """Whether its caller was told so."""
    error = one.future.exception() if one.future.done() else None
    return isinstance(error, ServiceError) and error.code == "deadline_exceeded"


async def test_those_due_first_and_no_more_than_are_worthwhile() -> None:
    entries = [entry(due) for due in range(6)]
    queue = filled(*entries[::-1])
    assert take(queue) == entries[:4]
    assert take(queue) == entries[4:]
    assert take(queue) == []


async def test_equally_due_are_first_come_first_served() -> None:
    entries = [entry(1) for _ in range(3)]
    assert take(filled(*entries)) == entries


async def test_nobody_s_are_left_out() -> None:
    entries = [entry(due) for due in range(3)]
    entries[1].future.cancel()
    queue = filled(*entries)
    assert take(queue) == [entries[0], entries[2]]
    assert len(queue) == 0


async def test_the_late_give_way_and_are_told() -> None:
    passed, doomed, good = entry(0, NOW), entry(1, SOONEST), entry(2)
    assert take(filled(passed, doomed, good)) == [good]
    assert [late(one) for one in (passed, doomed, good)] == [True, True, False]
    alone = entry(0, NOW)
    assert take(filled(alone)) == []
    assert late(alone)


async def test_where_all_would_be_late_as_many_as_fit_are_tried() -> None:
    entries = [entry(due, SOONEST) for due in range(10)]
    queue = filled(*entries)
    assert take(queue) == entries[:8]
    assert [late(one) for one in entries] == [False] * 8 + [True] * 2
    assert len(queue) == 0


async def test_further_outputs_have_small_batches_of_their_own() -> None:
    plain, wide = entry(5), [entry(due, further=FEATURES) for due in range(1 + MOST_WITH_FURTHER)]
    queue = filled(plain, *wide)
    assert take(queue, 32, 32) == wide[:-1]
    assert take(queue, 32, 32) == [plain]
    assert take(queue, 32, 32) == wide[-1:]


async def test_also_where_all_would_be_late() -> None:
    wide = [entry(due, SOONEST, FEATURES) for due in range(1 + MOST_WITH_FURTHER)]
    plain = entry(0.5, SOONEST)
    assert take(filled(*wide, plain), 32, 32) == wide[:-1]
    assert late(wide[-1])
    assert late(plain)


async def test_who_is_ahead() -> None:
    queue = filled(*(entry(due) for due in (0, 1, 2)))
    assert [queue.ahead_of(due, 1.0) for due in (-1.0, 0.0, 1.5, 9.0)] == [0, 1, 2, 3]
    with queue.turn(2) as turn:  # its images are due at 0.5 and 1.5
        assert [queue.ahead_of(due, 1.0) for due in (0.0, 0.5, 1.5, 9.0)] == [1, 2, 4, 5]
        assert queue.coming == 2
        turn.skip()
        assert [queue.ahead_of(due, 1.0) for due in (0.0, 0.5, 1.5, 9.0)] == [1, 2, 3, 4]
    assert (queue.coming, queue.ahead_of(9.0, 1.0)) == (0, 3)


async def test_who_comes_first_is_before_all_that_waits() -> None:
    queue = filled(entry(0.1))
    with queue.turn(1, first=True):
        assert queue.ahead_of(0.0, 1.0) == 1
    task = asyncio.create_task(queue.turn(1, first=True).submit(np.zeros((1, 1, 3), np.uint8), FAR))
    await asyncio.sleep(0)
    assert [one.due for one in take(queue)] == [0.0, 0.1]
    task.cancel()


async def test_a_turn_s_images_are_due_one_after_the_other() -> None:
    queue, pixels = waiting(), np.zeros((1, 1, 3), np.uint8)
    with queue.turn(3) as turn:
        tasks = [asyncio.create_task(turn.submit(pixels, FAR, FEATURES)) for _ in range(3)]
        await asyncio.sleep(0)
        assert (turn.coming, queue.coming, len(queue)) == (0, 0, 3)
    assert [(one.due, one.arrived, one.further) for one in take(queue)] == [
        (due, 0.5, FEATURES) for due in (0.5, 1.5, 2.5)
    ]
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
