"""What a service's processes took of the processor, and how long their threads waited for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """A process and all below it. Raises OSError where the process itself has ended."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        children = ""
        with contextlib.suppress(OSError):  # the thread has ended
            children = (thread / "children").read_text()
        for child in children.split():
            with contextlib.suppress(OSError):  # it has ended
                yield from tree(int(child))


def processor_s(pid: int) -> float:
    """Processor seconds of a process and all below it. Raises OSError where the process itself has ended."""
    ticks = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # one below it has ended
            if one == pid:
                raise
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def waits(pid: int) -> dict[int, int]:
    """Nanoseconds that each thread there is wanted to run and had no core, by its number; {} where none are counted.

    https://docs.kernel.org/scheduler/sched-stats.html
    """
    found = {}
    for one in tree(pid):
        with contextlib.suppress(OSError):  # one below it has ended
            for thread in Path(f"/proc/{one}/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    found[int(thread.name)] = int((thread / "schedstat").read_text().split()[1])
    return found


def waited_s(before: dict[int, int], after: dict[int, int]) -> float:
    """Seconds without a core between two counts, of all threads that are there at the end."""
    return sum(spent - before.get(thread, 0) for thread, spent in after.items()) / 1e9
