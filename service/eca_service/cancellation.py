"""Work that ends before it is done: at its deadline, when its caller leaves, or when a part of it fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from eca_service.errors import ServiceError

T = TypeVar("T")
ENDED = {
    "deadline_exceeded": "the request's deadline passed before its answer was ready",
    "client_closed": "the caller went away",
    "overloaded": "the message comes slowly, as too many others do; send it again, or smaller; HTTP bears more of them",
}


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def unless_cut_off(call: Coroutine[Any, Any, T]) -> T:
    """What `call` to a Triton returns or raises. Raises backend_unavailable where its channel was closed, as the server
    has left: gRPC cancels what runs there, and that would cancel the caller.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if task.cancelled():
        raise ServiceError("backend_unavailable", "the server has left")
    return task.result()


@contextmanager
def endable() -> Iterator[Callable[[str], None]]:
    """Gives a function that ends what is awaited within, which then raises the ServiceError of a code: one of ENDED.

    The work runs in the caller's own task: one more for every request costs more than all else that is done here.
    """
    task = asyncio.current_task()
    assert task is not None
    reasons: list[str] = []
    over = False

    def end(code: str) -> None:
        if not over:  # a caller may leave in the instant in which all is done
            reasons.append(code)
            task.cancel()

    try:
        yield end
    except asyncio.CancelledError:
        if not reasons:
            raise
        if sys.version_info >= (3, 11):
            for _ in reasons:
                task.uncancel()
        raise ServiceError(reasons[0], ENDED[reasons[0]]) from None
    finally:
        over = True


async def in_time(
    work: Awaitable[T], deadline: float, gone: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> T:
    """The result of `work`; it is cancelled at `deadline` (the event loop's clock) or as soon as `gone()` returns.

    Raises deadline_exceeded or client_closed.
    """
    loop = asyncio.get_running_loop()
    with endable() as end:
        timer = loop.call_at(deadline, end, "deadline_exceeded")
        watch = loop.create_task(gone()) if gone else None
        if watch:
            watch.add_done_callback(lambda ended: None if ended.cancelled() else end("client_closed"))
        try:
            return await work
        finally:
            timer.cancel()
            if watch:
                watch.cancel()
