"""The queue in front of an engine, on an engine whose time the test controls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from eca_service import metrics
from eca_service.batching import Batcher
from eca_service.contract import PROBABILITIES
from eca_service.costs import Costs
from eca_service.errors import ServiceError
from eca_service.tracing import Trace
from eca_service.waiting import MOST_WITH_FURTHER, Pixels, Row, Tensors, Turn


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
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pixels(value: int) -> Pixels:
    return np.array([value], np.uint8)


class Greedy(Costs):
    """Full batches from the start, whatever they take."""

    def worthwhile(self, most: int) -> int:
        return most


def batcher(
    engine: Engine, max_batch: int = 4, slots: int = 1, now: Callable[[], float] = time.perf_counter
) -> Batcher:
    made = Batcher("test", engine.run, max_batch, slots, now=now)
    made.costs = Greedy()
    return made


def far() -> float:
    return asyncio.get_running_loop().time() + 60


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def submit(queue: Batcher, value: int, turn: Turn | None = None) -> asyncio.Task[Row]:
    return asyncio.create_task((turn or queue.turn(1)).submit(pixels(value), far()))


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
    engine = Engine()
    queue = batcher(engine)
    tasks = [submit(queue, value) for value in range(3)]
    await settle()
    assert engine.batches == [[0], [1, 2]]
    tasks[1].cancel()
    await settle()
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
    for size, seconds in ((2, 0.01), (4, 0.02)):
        queue.costs.learn(size, seconds)
    assert queue.pace_s() == pytest.approx(0.0025)
    assert [queue.wait_s(images) for images in (8, 16)] == pytest.approx([0.02, 0.04]), "two full batches at once"
    assert queue.wait_s(3) == 0.01, "the larger part of three"


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
