"""Runs our modules in processes of their own, and ends one that stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import NamedTuple

from eca_build.errors import BuildError

STILL_S = 60.0  # none of our processes waits this long for anything
LOOKS = 12  # within that
STOOD_S = 5.0  # longer than one should take: then we stood still ourselves, as after Ctrl-Z
LEAST = 0.05  # of a core: threads that wait for each other still look whether they may go on, which takes up to 0.01
STARVED = 0.5  # of the time: a thread that works and gets no core waits nearly all of it, one that looks up to a third
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
    """What a process said last, and how it ended where a signal ended it or it said nothing."""
    said = [line.strip() for line in written.strip().splitlines()[-1:]]
    if status < 0:
        why = ", as Linux does where memory runs out" if status == -signal.SIGKILL else ""
        said.append(f"{signal.Signals(-status).name} ended it{why}")
    return "; ".join(said) or f"exit status {status}"


def run(
    command: Sequence[str],
    failure: str,
    told: Callable[[str, int], str] = last_line,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs `command` to its end, however long it works; what it printed. `environment` is beside ours.

    Raises BuildError, which begins with `failure`: where it fails, with what `told` makes of what it wrote (stderr
    after stdout) and of its status, and where it and those it started use less than LEAST of a core for STILL_S
    seconds, after which it is ended; unless a thread waited for a core meanwhile, STARVED of the time: on a busy
    machine one that works may get next to none.
    """
    with subprocess.Popen(
        command,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            written = _written(process)
        finally:
            process.kill()
    if written is None:
        raise BuildError(f"{failure}: it made no progress for {STILL_S:.0f} s and was ended; build again")
    if process.returncode:
        raise BuildError(f"{failure}: {told(''.join(written), process.returncode)}")
    return written[0]


def _written(process: subprocess.Popen[str]) -> tuple[str, str] | None:
    """What it wrote to stdout and to stderr until it ended; None where it stands still."""
    now, look_s, looks = _Use(0.0, {}), STILL_S / LOOKS, 0
    while True:
        looked = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=look_s)
        if time.monotonic() - looked > look_s + STOOD_S:
            now, looks = _use(process.pid), 0
            continue
        looks += 1
        if looks % LOOKS:
            continue
        before, now = now, _use(process.pid)
        worked_s = now.worked_s - before.worked_s
        waited_s = max((s - before.waited_s.get(tid, 0.0) for tid, s in now.waited_s.items()), default=0.0)
        if worked_s < LEAST * STILL_S and waited_s < STARVED * STILL_S:
            return None


class _Use(NamedTuple):
    """Of a process and those below it: the processor they used, and by thread how long it waited for it; seconds."""

    worked_s: float
    waited_s: dict[int, float]


def _use(pid: int) -> _Use:
    """From proc(5): fields 4 and 14 to 17 of `stat`; the second of `schedstat`, where the kernel keeps it."""
    below, used = defaultdict[int, list[int]](list), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        one = int(file.parent.name)
        below[int(fields[1])].append(one)
        used[one] = sum(map(int, fields[11:15]))
    ticks, waited_s, left = 0, dict[int, float](), [pid]
    while left:
        one = left.pop()
        ticks += used.get(one, 0)
        left += below[one]
        for name in glob(f"/proc/{one}/task/*/schedstat"):
            try:
                waited_s[int(Path(name).parent.name)] = int(Path(name).read_text().split()[1]) / 1e9
            except OSError:
                continue
    return _Use(ticks / os.sysconf("SC_CLK_TCK"), waited_s)
