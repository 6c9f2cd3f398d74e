"""What this process may use, by the control groups of its container or service: cgroups(7), of both versions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; how the first version writes that there is no limit


def cores() -> int:
    """The processors it may run on, or what its quota of time is worth, rounded up, where that is less.

    More threads than that would spend the quota at once, and all of them stand still for the rest of its period.
    """
    found = [len(os.sched_getaffinity(0))]
    for group in _groups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            numbers = _numbers(group, *files)
            if len(numbers) == 2 and min(numbers) > 0:
                quota_us, period_us = numbers
                found.append(-(-quota_us // period_us))
    return min(found)


def memory_bytes() -> int | None:
    """The memory it may take, None where there is no limit."""
    files = ("memory.max", "memory.limit_in_bytes")
    found = [limit for group in _groups("memory") for file in files for limit in _numbers(group, file)]
    return min((limit for limit in found if limit < UNLIMITED), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Its group's folder and those above, each of which has a limit of its own.

    A container of the first version is told its place on the host and finds its group at the root.
    """
    try:
        lines = MINE.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for folder in (group, *group.parents):
                yield ROOT / (controller if controllers else "") / folder


def _numbers(group: Path, *files: str) -> list[int]:
    """What stands in them; empty where one is not there, or says "max"."""
    try:
        return [int(word) for file in files for word in (group / file).read_text().split()]
    except (OSError, ValueError):
        return []
