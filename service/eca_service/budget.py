"""An amount that work takes its share of while it runs, such as memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


class Budget:
    """`total` of something, for work on threads; who asked first is served first."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    async def run(self, executor: Executor, share: int, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`, begun once `share` is left; of more than the total, once all is.

        Work whose caller was cancelled keeps its share until its thread is done with it.
        """
        share = min(share, self._total)
        loop = asyncio.get_running_loop()
        async with self._turn:
            while self._left < share:
                self._returned.clear()
                await self._returned.wait()
            self._left -= share
        try:
            future: Future[T] = executor.submit(work, *arguments)
        except BaseException:  # where no thread can be begun
            self._return(share)
            raise
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._return, share))
        return await asyncio.wrap_future(future)

    def _return(self, share: int) -> None:
        self._left += share
        self._returned.set()
