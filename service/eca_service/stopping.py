"""Signals that ask a process to end, as its main thread awaits them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import TracebackType

LONGEST_WAIT_S = 0.5
# from who runs the service, from Ctrl-C, and from Ctrl-\ or a container's STOPSIGNAL, which by default dumps the core
# with all images and keys that are in it
ENDING = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


def hung_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, which a terminal sends when it is closed, and perhaps twice; not where it is ignored, as under nohup."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


@contextmanager
def ending() -> Iterator[None]:
    """What asks the process to end leaves the block as sys.exit(0) does, wherever no other handler is set within it."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (*ENDING, *hung_up())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminal:
    """The one in whose foreground this process runs, if any.

    It sends SIGHUP to its first process alone: where that is make, as in a pane of tmux or by `ssh -t`, it waits for us
    and sends nothing on. So one that is gone counts as SIGHUP.
    """

    def __init__(self) -> None:
        self._descriptor = next((one for one in range(3) if os.isatty(one)), None)
        self._foreground = False

    def went(self) -> bool:
        """Whether it was closed since it was last asked about, and this process was in its foreground then."""
        if self._descriptor is None:
            return False
        try:
            self._foreground = os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            self._descriptor = None
            return self._foreground
        return False


class Stopping:
    """SIGTERM, SIGINT, SIGQUIT and one SIGHUP are counted while the block runs, instead of what they did before.

    A handler runs in the midst of whatever its thread does, which may be this very wait: between them is a queue that
    is made for this, not a lock of which both would have need.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[int] = SimpleQueue()

    def __enter__(self) -> Stopping:
        self._terminal = Terminal() if hung_up() else None
        self._before = {number: signal.signal(number, self._ask) for number in (*ENDING, *hung_up())}
        return self

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            self._terminal = None
        self._asked.put(number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, within_s: float) -> bool:
        """Whether one more signal comes within `within_s` seconds."""
        try:
            self._asked.get(timeout=within_s)
        except Empty:
            if self._terminal and self._terminal.went():
                self._terminal = None
                return True
            return False
        return True

    def wait(self) -> None:
        """Until the next signal. A wait without an end would not notice one that comes just as it begins."""
        while not self.asked(LONGEST_WAIT_S):
            pass
