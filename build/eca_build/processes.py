"""Runs our modules in processes of their own, and ends one that stands still."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eca_build.errors import BuildError

STILL_S = 60.0  # none of our processes waits this long for anything
LEAST = 0.05  # of a core: threads that wait for each other still look whether they may go on, which takes up to 0.01
# What libraries say of a GPU's memory, and the sentence instead.
NO_MEMORY = (
    r"out of memory|OutOfMemory",
    "the GPU has too little free memory for batches of {batch}; lower --max-batch, or end what else uses the GPU",
)
# As `python -m` but for the folder that the user is in, whose files would come before Python's own; 3.10 has no -P.
# Linux ends it with us (PR_SET_PDEATHSIG), killed or told to end at the very moment in which it is started.
AS_MODULE = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import os, runpy
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != {parent}:
        sys.exit()
runpy.run_module({name!r}, run_name="__main__", alter_sys=True)
"""


def module(name: str) -> list[str]:
    """The command that runs a module in a new Python, without its arguments; it ends when we do."""
    return [sys.executable, "-c", AS_MODULE.format(name=name, parent=os.getpid())]


def last_line(written: str, status: int) -> str:
    """What a process said last, or how it ended."""
    return (written.strip().splitlines() or [f"exit status {status}"])[-1].strip()


def run(
    command: Sequence[str],
    failure: str,
    told: Callable[[str, int], str] = last_line,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs `command` to its end, however long it works; what it printed. `environment` is beside ours.

    Raises BuildError, which begins with `failure`: where it fails, with what `told` makes of what it wrote
    (stderr after stdout) and of its status, and where it and those it started use less than LEAST of a core for STILL_S
    seconds, after which it is ended.
    """
    with subprocess.Popen(
        command,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        worked = 0.0
        try:
            while True:
                try:
                    printed, errors = process.communicate(timeout=STILL_S)
                    break
                except subprocess.TimeoutExpired:
                    before, worked = worked, _processor_s(process.pid)
                    if worked - before < LEAST * STILL_S:
                        raise BuildError(
                            f"{failure}: it did nothing for {STILL_S:.0f} s and was ended; build again"
                        ) from None
        finally:
            process.kill()
    if process.returncode:
        raise BuildError(f"{failure}: {told(printed + errors, process.returncode)}")
    return printed


def _processor_s(pid: int) -> float:
    """What a process and those below it have used of the processor, in seconds (proc(5), `stat`: 4, 14 to 17)."""
    below, used = defaultdict[int, list[int]](list), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        one = int(file.parent.name)
        below[int(fields[1])].append(one)
        used[one] = sum(map(int, fields[11:15]))
    ticks, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        ticks += used.get(one, 0)
        waiting += below[one]
    return ticks / os.sysconf("SC_CLK_TCK")
