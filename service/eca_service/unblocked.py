"""Standard error for the log: whoever reads it slowly, or no more, holds up nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

MOST_BYTES = 4 << 20  # that wait for a reader; of what comes then the newest is lost
AT_END_S = 1.0  # for what waits when the process ends


class Unblocked(logging.Handler):
    """Writes to a pipe or a socket what fits into it at once; the rest waits, and a thread writes it as there is room.

    How many lines were lost is written as the next.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._write, self._end = _opened(descriptor)
        self._waiting: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Under the handler's lock, as all here but what waits for room."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        if self._bytes + len(line) > MOST_BYTES:
            self._lost += 1
            return
        self._put(line)
        if not self._drained() and self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Waits for a reader for at most AT_END_S."""
        end = time.monotonic() + AT_END_S
        while True:
            with self.lock or contextlib.nullcontext():
                if self._drained():
                    return
            if (left_s := end - time.monotonic()) <= 0:
                return
            select.select([], [self._descriptor], [], min(left_s, 0.1))

    def close(self) -> None:
        """What still waits is lost."""
        super().close()
        with self.lock or contextlib.nullcontext():
            self._write, end, self._end = len, self._end, lambda: None
            end()

    def _put(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)

    def _drained(self) -> bool:
        """Writes what there is room for; whether that was all."""
        while self._waiting:
            line = self._waiting[0]
            try:
                count = self._write(line)
            except BlockingIOError:
                return False
            except OSError:  # nobody will ever read it
                count = len(line)
            self._bytes -= count
            self._waiting.popleft()
            if count < len(line):
                self._waiting.appendleft(line[count:])
            elif self._lost and not self._waiting:
                told = self.format(logging.makeLogRecord({
                    "name": __name__, "levelno": logging.WARNING, "levelname": "WARNING",
                    "msg": f"{self._lost} lines of the log are lost: nobody read it",
                }))  # fmt: skip
                self._lost = 0
                self._put(f"{told}\n".encode())
        return True

    def _drain(self) -> None:
        while True:
            select.select([], [self._descriptor], [], 1.0)
            with self.lock or contextlib.nullcontext():
                if self._drained():
                    self._thread = None
                    return
            time.sleep(0.01)  # a line may be larger than the room that there is


def may_block(descriptor: int) -> bool:
    """Whether somebody reads what is written there, and may stop to."""
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)


def _opened(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """What writes as much as there is room for, at least a byte, or raises BlockingIOError; and what ends that.

    The descriptor itself stays as it is: others share it.
    """
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        own = socket.socket(fileno=os.dup(descriptor))
        return lambda line: own.send(line, socket.MSG_DONTWAIT), own.close
    anew = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return partial(os.write, anew), partial(os.close, anew)
