"""Messages and bodies while they come. Those that take longer than a second are bounded in their number.

gRPC's library shows only whole messages, so nobody knows how much of one is here: their memory is bounded by what the
line brings within that second, and by those that take longer. Of HTTP's bodies that is known, but each has a permit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from eca_service import metrics
from eca_service.cancellation import endable
from eca_service.errors import ServiceError

T = TypeVar("T")
QUICK_S = 1.0
CANCELLED_S = 0.05  # until a call that its caller left, or whose message gRPC finds too large, is told so


class Arrivals:
    """Of those that come for longer than a second there are at most `most`: for one more the oldest is given up.

    So whoever sends slowly takes nothing from those who do not, and few who never end do not stay.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._slow: dict[Callable[[str], None], float] = {}  # what ends each, and when it began

    async def message(self, read: Callable[[], Awaitable[Any]], deadline: float) -> bytes | None:
        """The message that `read`, a call's own, gives; None where its caller sends no other.

        Raises overloaded where it is given up, deadline_exceeded where it is not whole at `deadline`, of the event
        loop's clock.
        """
        loop = asyncio.get_running_loop()
        with endable() as end:
            timers = self._timer(end, loop.time()), loop.call_at(deadline, end, "deadline_exceeded")
            try:
                found = await read()
            finally:
                self._slow.pop(end, None)
                for timer in timers:
                    timer.cancel()
        return None if found is grpc.aio.EOF else found

    async def only(self, read: Callable[[], Awaitable[Any]], deadline: float) -> bytes:
        """The same of a call of one message; bad_request where there is none."""
        found = await self.message(read, deadline)
        if found is None:
            await asyncio.sleep(CANCELLED_S)
            raise ServiceError("bad_request", "the call ended before its message was whole")
        return found

    async def piece(self, read: Callable[[], Awaitable[T]], began: float) -> T:
        """The next piece that `read` gives of a body that `began` then, by the event loop's clock.

        Raises overloaded where its caller is given up.
        """
        with endable() as end:
            timer = self._timer(end, began)
            try:
                return await read()
            finally:
                self._slow.pop(end, None)
                timer.cancel()

    def _timer(self, end: Callable[[str], None], began: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(began + QUICK_S, self._linger, end, began)

    def _linger(self, end: Callable[[str], None], began: float) -> None:
        self._slow[end] = began
        if len(self._slow) > self._most:
            oldest = min(self._slow, key=self._slow.__getitem__)
            del self._slow[oldest]
            metrics.rejected.labels("overloaded").inc()
            oldest("overloaded")
