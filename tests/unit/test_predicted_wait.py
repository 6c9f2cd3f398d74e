"""How long an image will wait in front of an engine is foretold."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.held_engine import Clock, Engine, batcher, settle, submit


async def test_predicted_wait_grows_with_the_queue() -> None:
    engine = Engine()
    queue = batcher(engine, now=Clock())
    with queue.turn(3):
        assert queue.wait_s() == 0, "nothing is known yet"
    queue.costs.learn(1, 0.01)
    queue.costs.learn(4, 0.02)
    assert queue.wait_s() == pytest.approx(0.01)
    tasks = [submit(queue, value) for value in range(9)]
    await settle()
    assert queue.wait_s(1) == pytest.approx(0.01 + 2 * 0.02 + 0.01), "one runs, two full batches wait, and one's own"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_another_thread_runs_ends_as_soon() -> None:
    queue = batcher(Engine(), now=Clock())
    queue.threads = 2
    queue.costs.learn(1, 1.0)
    tasks = [submit(queue, value) for value in range(2)]
    await settle()
    assert queue.wait_s(1) == 2, "both at once, and then one's own"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_instances_share_what_waits() -> None:
    queue = batcher(Engine(), slots=2, now=Clock())
    for size, seconds in ((1, 0.005), (2, 0.01), (4, 0.02)):
        queue.costs.learn(size, seconds)
    assert queue.pace_s() == pytest.approx(0.0025)
    assert [queue.wait_s(images) for images in (8, 16)] == pytest.approx([0.02, 0.04]), "two full batches at once"
    assert queue.wait_s(3) == 0.01, "the larger part of three"


async def test_the_instance_that_is_free_first_is_waited_for() -> None:
    clock = Clock()
    queue = batcher(Engine(), slots=2, now=clock)
    queue.costs.learn(1, 1.0)
    tasks = []
    for value in range(2):
        tasks.append(submit(queue, value))
        await settle()
        clock.now += 0.25
    assert queue.wait_s() == pytest.approx(0.5 + 1.0), "the first instance ends in half a second, the other later"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_predicted_wait_counts_who_is_being_decoded_but_not_who_is_due_later() -> None:
    queue = batcher(Engine(), now=Clock())
    queue.costs.learn(4, 2.0)  # half a second an image
    with queue.turn(100) as large:
        assert not queue.idle
        assert queue.wait_s(1) == 2, "the large request's first image and one's own, in one batch"
        assert queue.wait_s(8) == 8, "eight of the large request's, and eight"
        for _ in range(100):
            large.skip()
        assert queue.idle
