"""Work ends at its deadline or with its caller, and the task that did it is as before."""

from __future__ import annotations

import asyncio
import sys

import pytest
from eca_service.cancellation import in_time
from eca_service.errors import ServiceError


def cancellations() -> int:
    """How many times the current task was asked to end and has not been told otherwise."""
    task = asyncio.current_task()
    assert task is not None
    if sys.version_info >= (3, 11):
        return task.cancelling()
    return 0


async def leaves() -> None:
    """A caller that goes away at once."""


async def test_at_its_deadline() -> None:
    with pytest.raises(ServiceError, match="deadline_exceeded"):
        await in_time(asyncio.sleep(60), asyncio.get_running_loop().time())
    assert cancellations() == 0


async def test_with_its_caller() -> None:
    with pytest.raises(ServiceError, match="client_closed"):
        await in_time(asyncio.sleep(60), asyncio.get_running_loop().time() + 60, leaves)
    assert cancellations() == 0


async def test_what_cancels_the_task_itself_is_no_deadline() -> None:
    task = asyncio.create_task(in_time(asyncio.sleep(60), asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def answered(turns: int) -> str:
    """What a caller gets who leaves, where the work is done so many turns of the event loop later."""
    loop = asyncio.get_running_loop()
    left, done = asyncio.Event(), loop.create_future()

    async def gone() -> None:
        await left.wait()

    async def request() -> str:
        found: str = await in_time(done, loop.time() + 5, gone)
        await asyncio.sleep(0.01)  # it sends the answer
        return found

    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    left.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    if not done.done():
        done.set_result("done")
    return await task


async def test_who_leaves_as_all_is_done_ends_nothing_that_follows() -> None:
    assert await answered(0) == "done"
    with pytest.raises(ServiceError, match="client_closed"):
        await answered(3)
