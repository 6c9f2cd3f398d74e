"""When requests start: planned beforehand, whatever the service does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Process = Literal["poisson", "constant"]
FINE_S = 0.05  # before a start


def planned(process: Process, rate: float, seconds: float, most: int, seed: int) -> list[float]:
    """Starts in seconds from the beginning, ascending, at `rate` a second, for `seconds`, at most `most` of them."""
    enough = min(most, int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10))
    if process == "constant":
        starts = np.arange(enough) / rate
    else:
        starts = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, enough))
    return [float(start) for start in starts[starts < seconds]]


class Pacer:
    """Calls back in the event loop at each planned start, within a tenth of a millisecond on an idle core.

    It sleeps in a thread of its own: an event loop's timers are only as fine as a millisecond.
    """

    def __init__(self, starts: Sequence[float], began: float, call: Callable[[int], None]) -> None:
        """`began` is of time.perf_counter; `call` gets the index of the start."""
        self._starts = starts
        self._began = began
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)

    def __enter__(self) -> Pacer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        for index, start in enumerate(self._starts):
            due = self._began + start
            if (wait_s := due - time.perf_counter()) > FINE_S:
                self._ended.wait(wait_s - FINE_S)  # which is later than sleep by 50 us, and ends with the load
            if (wait_s := due - time.perf_counter()) > 0 and not self._ended.is_set():
                time.sleep(wait_s)
            if self._ended.is_set():
                return
            self._loop.call_soon_threadsafe(self._call, index)
