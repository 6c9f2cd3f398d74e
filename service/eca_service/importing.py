"""Signals while modules are imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Within it signals end the process as they do by default; nothing has begun that would be left.

    Of the exception that they raise otherwise a C++ module that is initialised makes a crash, or a failure of its own.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        # ignored is SIGINT where it runs in the background; a container's first process ends by no default
        if handler is not signal.SIG_IGN and os.getpid() != 1:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
