"""Signals that ask a process to end, as its main thread awaits them."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from types import TracebackType

LONGEST_WAIT_S = 0.5


class Stopping:
    """SIGTERM and SIGINT are counted while the block runs, instead of what they did before.

    A handler runs in the midst of whatever its thread does, which may be this very wait: between them is a queue that
    is made for this, not a lock of which both would have need.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[int] = SimpleQueue()

    def __enter__(self) -> Stopping:
        self._before = {
            number: signal.signal(number, lambda number, _: self._asked.put(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, within_s: float) -> bool:
        """Whether one more signal comes within `within_s` seconds."""
        try:
            self._asked.get(timeout=within_s)
        except Empty:
            return False
        return True

    def wait(self) -> None:
        """Until the next signal. A wait without an end would not notice one that comes just as it begins."""
        while not self.asked(LONGEST_WAIT_S):
            pass
