"""What a service's processes took of the processor, and how long their threads waited for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from tree(int(child))


def processor_s(pid: int) -> float:
    """Processor seconds of a process and all below it."""
    ticks = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """Seconds that the threads there are now wanted to run and had no core; 0 where the kernel does not count them.

    https://docs.kernel.org/scheduler/sched-stats.html
    """
    waited_ns = 0
    for one in tree(pid):
        for thread in Path(f"/proc/{one}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                waited_ns += int((thread / "schedstat").read_text().split()[1])
    return waited_ns / 1e9
