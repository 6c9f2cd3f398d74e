"""The queue in front of an engine: which images leave when, and which together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest
from eca_service import metrics
from eca_service.batching import Batcher
from eca_service.contract import PROBABILITIES
from eca_service.waiting import MOST_WITH_FURTHER, Pixels, Tensors

from tests.unit.held_engine import Clock, Engine, batcher, far, pixels, settle, submit


def told(metric: str) -> float:
    """What a metric of the tests' batchers is now."""
    return metrics.registry.get_sample_value(metric, {"model": "test"}) or 0


async def test_a_lone_image_leaves_at_once_and_the_waiting_leave_together() -> None:
    engine = Engine()
    queue = batcher(engine)
    before = [told(f"eca_batch_size_{part}") for part in ("sum", "count")]
    tasks = [asyncio.create_task(queue.submit(pixels(value), far())) for value in range(8)]
    await settle()
    assert engine.batches == [[0], [1, 2]], "and half a batch ahead"
    assert (told("eca_queue_depth"), queue.coming) == (5, 0)
    engine.finish()
    await settle()
    assert engine.batches[2] == [3, 4, 5, 6], "no more than the largest batch"
    engine.finish()
    await settle()
    assert len(engine.batches) == 3, "what is left fills no half, so it waits for others until the engine is free"
    engine.finish()
    await settle()
    assert engine.batches[3] == [7]
    assert not queue.idle, "nothing waits, but one runs"
    engine.finish()
    rows = await asyncio.gather(*tasks)
    assert [row.probabilities[0] for row in rows] == list(range(8)), "each caller gets its own image's answer"
    await settle()
    assert queue.idle
    assert told("eca_queue_depth") == 0
    assert [told(f"eca_batch_size_{part}") for part in ("sum", "count")] == [before[0] + 8, before[1] + 4]


async def test_as_many_batches_as_slots() -> None:
    engine = Engine()
    queue = batcher(engine, max_batch=8, slots=2)
    tasks = [submit(queue, value) for value in range(4)]
    await settle()
    assert engine.batches == [[0], [1]]
    for gate in engine.gates:
        gate.set()
    await settle()
    assert engine.batches[2] == [2, 3]
    tasks += [submit(queue, value) for value in range(4, 9)]
    await settle()
    assert engine.batches[3:] == [[4], [5, 6, 7, 8]], "one in the other slot, and half a batch ahead"
    for gate in engine.gates:
        gate.set()
    await asyncio.gather(*tasks)


async def test_few_images_leave_at_once_where_the_engine_has_a_thread_for_each() -> None:
    engine = Engine()
    queue = batcher(engine, max_batch=8)
    queue.threads = 3
    tasks = [submit(queue, 0)]
    await settle()
    tasks += [submit(queue, 1)]
    await settle()
    assert engine.batches == [[0], [1]], "for the second there is a thread that idles"
    with queue.turn(2) as turn:  # two more are being decoded: with them there are too many
        tasks += [submit(queue, 2)]
        await settle()
        assert len(engine.batches) == 2, "it waits for those that come"
        tasks += [submit(queue, value, turn) for value in (3, 4)]
        await settle()
        assert len(engine.batches) == 2, "three are not half of what is worthwhile"
        tasks += [submit(queue, 5)]
        await settle()
        assert [sorted(each) for each in engine.batches[2:]] == [[2, 3, 4, 5]], "half a batch ahead"
        tasks += [submit(queue, value) for value in range(6, 14)]
        await settle()
        assert len(engine.batches) == 3, "one batch ahead and no more"
    while not all(task.done() for task in tasks):
        engine.finish()
        await settle()
    rows = await asyncio.gather(*tasks)
    assert [row.probabilities[0] for row in rows] == list(range(14))
    assert queue.idle
    sent = len(engine.batches)
    for value in range(3):
        tasks += [submit(queue, value)]
        await settle()
        assert len(engine.batches) == sent + value + 1, "as many as there are threads"
    for gate in engine.gates:
        gate.set()
    await asyncio.gather(*tasks)


async def test_each_instance_has_its_threads() -> None:
    engine = Engine()
    queue = batcher(engine, max_batch=8, slots=2)
    queue.threads = 2
    tasks = []
    for value in range(4):
        tasks.append(submit(queue, value))
        await settle()
    assert engine.batches == [[0], [1], [2], [3]]
    for gate in engine.gates:
        gate.set()
    await asyncio.gather(*tasks)


async def test_a_large_request_does_not_starve_single_images() -> None:
    engine = Engine()
    queue = batcher(engine)
    queue.costs.learn(4, 4.0)  # a second an image, however slow this machine is
    large = queue.turn(100)
    tasks = [submit(queue, 1, large) for _ in range(100)]
    await settle()
    tasks += [submit(queue, 2), submit(queue, 3)]
    await settle()
    assert engine.batches == [[1], [1] * 2]
    engine.finish()
    await settle()
    assert sorted(engine.batches[2]) == [1, 1, 2, 3], "the single images leave with the next batch"
    while not all(task.done() for task in tasks):
        engine.finish()
        await settle()


async def test_first_come_first_served() -> None:
    """Equal requests do not share the engine, which would have all of them finish at the end."""
    engine = Engine()
    queue = batcher(engine)
    queue.costs.learn(4, 1e-9)
    blocking = submit(queue, 0)
    await settle()
    tasks = []
    for value in (1, 2, 3):
        turn = queue.turn(4)
        tasks += [submit(queue, value, turn) for _ in range(4)]
        await settle()
    while not all(task.done() for task in tasks):
        engine.finish()
        await settle()
    await blocking
    assert [value for batch in engine.batches for value in batch] == [0] + [1] * 4 + [2] * 4 + [3] * 4


async def test_what_wants_more_shares_no_batch_with_what_does_not() -> None:
    """Features asked for by a few must not travel for all; everybody's turn comes all the same."""
    engine = Engine()
    queue = batcher(engine, max_batch=32)
    first = submit(queue, 0)
    await settle()
    plain = [submit(queue, value) for value in range(1, 4)]
    turn = queue.turn(1 + MOST_WITH_FURTHER)
    wide = [
        asyncio.create_task(turn.submit(pixels(value), far(), ("features",)))
        for value in range(10, 11 + MOST_WITH_FURTHER)
    ]
    plain += [submit(queue, 4)]
    for _ in range(4):
        await settle()
        engine.finish()
    await asyncio.gather(first, *plain, *wide)
    assert engine.batches == [[0], [1, 2, 3, 4], list(range(10, 10 + MOST_WITH_FURTHER)), [10 + MOST_WITH_FURTHER]]
    assert [task.result().further for task in plain] == [{}] * 4
    assert [float(task.result().further["features"][0]) for task in wide] == [2.0 * v for v in range(10, 19)]


async def test_what_waits_at_the_engine_is_waiting() -> None:
    """A batch sent ahead begins when the one before it ends: until then it waits in the queue."""
    engine, clock = Engine(), Clock()
    queue = batcher(engine, max_batch=4, now=clock)
    tasks = [submit(queue, value) for value in range(3)]
    await settle()
    assert engine.batches == [[0], [1, 2]]
    for seconds in (3, 2):
        clock.now += seconds
        engine.finish()
        await settle()
    first, second, _ = await asyncio.gather(*tasks)
    assert (first.queue_s, first.infer_s) == (0, 3)
    assert (second.queue_s, second.infer_s) == (3, 2)
    assert (queue.costs.seconds(1), queue.costs.seconds(2)) == (3, 2), "learnt from both"
    counted = queue.totals
    assert (counted.images, counted.batches) == (3, 2)
    assert counted.last_s == pytest.approx(time.time(), abs=60)


async def test_batches_are_as_large_as_is_worthwhile() -> None:
    """An engine that takes hardly longer for many gets more and more; `test_costs` has the others."""
    sizes, free, clock = list[int](), asyncio.Lock(), Clock()

    async def run(images: Sequence[Pixels], *_: object) -> Tensors:
        sizes.append(len(images))
        async with free:
            await asyncio.sleep(0)
            clock.now += 0.02
        return {PROBABILITIES: np.zeros((len(images), 1), np.float32)}

    queue = Batcher("test", run, 16, slots=1, now=clock)
    await asyncio.gather(*(submit(queue, 0) for _ in range(100)))
    assert sum(sizes) == 100
    assert sizes[:2] == [1, 1], "nothing is known yet"
    assert max(sizes) == 16


async def test_batches_are_no_larger_than_is_worthwhile() -> None:
    engine = Engine()
    queue = Batcher("test", engine.run, 16, slots=1)
    for size, seconds in ((1, 1.0), (2, 1.0), (4, 2.0)):
        queue.costs.learn(size, seconds)
    tasks = [submit(queue, value) for value in range(5)]
    await settle()
    assert engine.batches == [[0], [1]], "half of two ahead"
    while not all(task.done() for task in tasks):
        engine.finish()
        await settle()
    assert engine.batches[2:] == [[2, 3], [4]]
