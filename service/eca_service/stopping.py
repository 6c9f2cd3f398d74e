"""Signals that ask a process to end, as its main thread awaits them."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from types import TracebackType

LONGEST_WAIT_S = 0.5
# from who runs the service, from Ctrl-C, and from Ctrl-\ or a container's STOPSIGNAL, which by default dumps the core
# with all images and keys that are in it
ENDING = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


def hung_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, which a terminal sends when it is closed, and perhaps twice; not where it is ignored, as under nohup."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


class Stopping:
    """SIGTERM, SIGINT, SIGQUIT and one SIGHUP are counted while the block runs, instead of what they did before.

    A handler runs in the midst of whatever its thread does, which may be this very wait: between them is a queue that
    is made for this, not a lock of which both would have need.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[int] = SimpleQueue()

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._ask) for number in (*ENDING, *hung_up())}
        return self

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        self._asked.put(number)

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
