"""The queue in front of an engine, where callers leave, deadlines pass and batches fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from eca_service.batching import Batcher
from eca_service.contract import PROBABILITIES
from eca_service.errors import ServiceError
from eca_service.waiting import Pixels, Row, Tensors

from tests.unit.held_engine import Engine, batcher, far, pixels, settle, submit


async def two_batches_and_one_who_left() -> tuple[Engine, Batcher, list[asyncio.Task[Row]]]:
    """Images 0 to 2 with the engine, the last two in one batch, of which the first one's caller has left."""
    engine = Engine()
    queue = batcher(engine)
    tasks = [submit(queue, value) for value in range(3)]
    await settle()
    assert engine.batches == [[0], [1, 2]]
    tasks[1].cancel()
    await settle()
    return engine, queue, tasks


async def test_a_caller_that_left_is_dropped() -> None:
    engine = Engine()
    queue = batcher(engine, max_batch=8)
    tasks = [submit(queue, value) for value in range(3)]
    await settle()
    tasks[1].cancel()
    engine.gates[0].set()
    await settle()
    assert engine.batches == [[0], [2]], "its image is never sent"
    engine.gates[1].set()
    assert (await tasks[2]).probabilities[0] == 2


async def test_one_that_leaves_a_running_batch_harms_nobody_and_the_last_cancels_it() -> None:
    engine = Engine()
    queue = batcher(engine)
    first = submit(queue, 0)
    await settle()
    pair = [submit(queue, 1), submit(queue, 2)]
    await settle()
    engine.gates[0].set()
    await first
    await settle()
    assert engine.batches[1] == [1, 2]
    pair[0].cancel()
    await settle()
    assert engine.cancelled == 0
    pair[1].cancel()
    await settle()
    assert engine.cancelled == 1
    assert queue.idle


async def test_who_is_left_of_a_running_batch_is_answered() -> None:
    engine, queue, tasks = await two_batches_and_one_who_left()
    for gate in engine.gates:
        gate.set()
    rows = await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2]), 10)
    assert [row.probabilities[0] for row in rows] == [0, 2]
    assert queue.idle


async def test_an_engine_that_ends_its_work_for_nobody_is_busy_meanwhile() -> None:
    engine = Engine()
    engine.stubborn = True
    queue = batcher(engine)
    first = submit(queue, 0)
    await settle()
    first.cancel()
    second = submit(queue, 1)
    await settle()
    assert (engine.cancelled, engine.batches, queue.idle) == (1, [[0]], False)
    engine.finish()
    await settle()
    assert engine.batches == [[0], [1]]
    engine.finish()
    assert (await second).probabilities.tolist() == [1.0]


async def test_a_passed_deadline_is_not_sent() -> None:
    engine = Engine()
    queue = batcher(engine)
    first = submit(queue, 0)
    await settle()
    late = asyncio.create_task(queue.turn(1).submit(pixels(1), asyncio.get_running_loop().time() - 1))
    await settle()
    engine.gates[0].set()
    with pytest.raises(ServiceError, match="deadline_exceeded"):
        await late
    await first
    assert engine.batches == [[0]]


async def test_what_would_be_late_gives_its_place_to_what_would_not() -> None:
    engine = Engine()
    queue = batcher(engine, max_batch=8)
    for size, seconds in ((1, 5.0), (2, 5.0), (4, 10.0), (8, 100.0)):
        queue.costs.learn(size, seconds)
    first = submit(queue, 0)
    await settle()
    soon = asyncio.get_running_loop().time() + 5
    late = asyncio.create_task(queue.turn(1).submit(pixels(1), soon))
    good = submit(queue, 2)
    maybe = asyncio.create_task(queue.turn(1).submit(pixels(4), soon + 4))  # engines are a little quicker at times
    await settle()
    engine.gates[0].set()
    with pytest.raises(ServiceError, match="deadline_exceeded"):
        await late
    assert engine.batches == [[0], [2, 4]]
    alone = asyncio.create_task(queue.turn(1).submit(pixels(3), soon - 2))
    await settle()
    engine.gates[1].set()
    await asyncio.gather(first, good, maybe)
    await settle()
    assert engine.batches[2:] == [[3]], "nothing else waits, so it is tried"
    engine.gates[2].set()
    assert (await alone).probabilities[0] == 3


async def test_a_failure_reaches_every_caller_and_the_queue_goes_on() -> None:
    engine = Engine()
    engine.error = ServiceError("backend_unavailable", "gone")
    queue = batcher(engine)
    task = submit(queue, 0)
    await settle()
    engine.gates[0].set()
    with pytest.raises(ServiceError, match="gone"):
        await task
    engine.error = None
    task = submit(queue, 1)
    await settle()
    engine.gates[1].set()
    assert (await task).probabilities[0] == 1
    assert queue.totals.batches == 1


async def test_who_waits_for_a_call_that_is_cut_off_is_let_go() -> None:
    """gRPC cancels the calls of a channel that is closed."""
    engine = Engine()
    engine.error = asyncio.CancelledError()
    task = submit(batcher(engine), 0)
    await settle()
    engine.finish()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_a_failure_reaches_who_is_left_and_the_queue_goes_on() -> None:
    engine, queue, tasks = await two_batches_and_one_who_left()
    engine.error = ServiceError("backend_unavailable", "gone")
    for gate in engine.gates:
        gate.set()
    await settle()
    assert [str(tasks[left].exception()) for left in (0, 2)] == ["backend_unavailable: gone"] * 2
    engine.error = None
    task = submit(queue, 3)
    await settle()
    engine.gates[2].set()
    assert (await task).probabilities[0] == 3
    assert queue.idle


async def test_a_batch_may_take_as_long_as_the_most_patient_of_its_callers() -> None:
    engine, now = Engine(), asyncio.get_running_loop().time()
    queue = batcher(engine)
    tasks = [submit(queue, 0)]
    await settle()
    deadlines = [now + 60, now + 1]
    tasks += [asyncio.create_task(queue.turn(1).submit(pixels(1), deadline)) for deadline in deadlines]
    await settle()
    assert engine.batches == [[0], [1, 1]]
    assert engine.deadlines[1] == now + 60
    for gate in engine.gates:
        gate.set()
    await asyncio.gather(*tasks)


async def test_answers_are_counted() -> None:
    engine = Engine()
    engine.rows = 1
    queue = batcher(engine)
    task = submit(queue, 0)
    await settle()
    engine.gates[0].set()
    with pytest.raises(ServiceError, match="2 answers for 1 images"):
        await task
    assert (queue.totals.images, queue.totals.batches, queue.idle) == (0, 0, True)


async def test_answers_of_every_output_are_counted() -> None:
    async def run(images: Sequence[Pixels], *_: object) -> Tensors:
        few = np.zeros((len(images), 1), np.float32)
        return {PROBABILITIES: few, "features": few.repeat(2, 0)}

    queue = Batcher("test", run, max_batch=4, slots=1)
    with pytest.raises(ServiceError, match="2 answers for 1 images"):
        await queue.submit(pixels(0), far(), ("features",))


async def test_what_was_sent_ahead_may_end_first() -> None:
    """Its callers left: the next half a batch takes its place."""
    engine = Engine()
    queue = batcher(engine, max_batch=2)
    first, ahead = submit(queue, 0), submit(queue, 1)
    await settle()
    ahead.cancel()
    await settle()
    assert (engine.batches, engine.cancelled) == ([[0], [1]], 1)
    others = [submit(queue, value) for value in (2, 3)]
    await settle()
    assert engine.batches[2:] == [[2]], "half a batch ahead, and no more"
    engine.gates[0].set()
    await settle()
    assert engine.batches[3:] == [[3]]
    for gate in engine.gates:
        gate.set()
    assert [row.probabilities[0] for row in await asyncio.gather(first, *others)] == [0, 2, 3]
