"""The threads that images are decoded on, off the event loop, and what an image takes there."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from eca_service.budget import Budget
from eca_service.contract import Contract
from eca_service.imaging import Decoded, Large, decode, most_bytes
from eca_service.journal import Entry
from eca_service.settings import Settings

T = TypeVar("T")
WEIGHT = 0.1  # of the newest image in the mean
ROOM_BYTES = 128 << 20  # what may take more is large


class Decoders:
    """`settings.decode_threads` threads. `busy` images are being decoded or wait for it.

    Large images are none of theirs: one may take a gigabyte, so there are at once as many as fit into the memory of the
    largest that is let in, on threads of their own, and no other image waits for them.
    """

    def __init__(self, settings: Settings) -> None:
        self.threads = settings.decode_threads
        self.busy = 0
        self._fast = settings.preprocessing == "fast"
        self._max_pixels = settings.max_pixels
        self._pool = ThreadPoolExecutor(self.threads, "decode", _yielding)
        self._large = ThreadPoolExecutor(self.threads, "decode-large", _yielding)
        self._memory = Budget(most_bytes(settings.max_pixels))
        self._each_s = 0.0

    def seconds(self, images: int) -> float:
        """What so many images take all threads, by those that were decoded."""
        return images * self._each_s / self.threads

    async def decode(
        self, image: bytes, contract: Contract, entry: Entry, preview_px: int = 0
    ) -> tuple[Decoded, float]:
        """The image as the contract's recipe wants it, and the seconds that took; `preview_px` as for `imaging.decode`.

        The time is written down in `entry`. Raises what `imaging.decode` raises.
        """
        started = time.perf_counter()
        arguments = (image, contract.preprocessing, self._max_pixels, self._fast, preview_px)
        try:
            decoded = await self._decode_among_others(*arguments)
        except Large as large:
            decoded = await self._memory.run(self._large, large.bytes, decode, *arguments)
        spent = time.perf_counter() - started
        entry.stage("decode", contract.name, started, spent)
        return decoded, spent

    async def _decode_among_others(self, *arguments: Any) -> Decoded:
        self.busy += 1
        try:
            work = partial(_timed_decode, *arguments, ROOM_BYTES)
            decoded, busy_s = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self.busy -= 1
        self._each_s += WEIGHT * (busy_s - self._each_s)
        return decoded

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`, which would keep the event loop for too long."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))

    def close(self) -> None:
        """Ends the threads, and drops what waits for them."""
        self._pool.shutdown(cancel_futures=True)
        self._large.shutdown(cancel_futures=True)


def _yielding() -> None:
    """Lowers the calling thread's priority, so that the event loop answers while every core decodes."""
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)


def _timed_decode(*arguments: Any) -> tuple[Decoded, float]:
    started = time.perf_counter()
    return decode(*arguments), time.perf_counter() - started
