"""Work that ends before it is done."""

from __future__ import annotations

import asyncio

import pytest
from eca_service.cancellation import in_time
from eca_service.errors import ServiceError


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


async def test_a_deadline_ends_the_work() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ServiceError, match="deadline_exceeded"):
        await in_time(asyncio.sleep(5), loop.time() + 0.01)
    task = asyncio.current_task()
    assert task is not None
    assert not getattr(task, "cancelling", int)()  # Python 3.11: nothing above is told to end
