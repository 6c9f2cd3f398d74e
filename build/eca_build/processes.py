"""Runs an engine in a process of its own, and ends that process where it stands still."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from eca_build.errors import BuildError

STILL_S = 60.0  # none of our engines waits this long for anything
LEAST = 0.05  # of a core: threads that wait for each other still look whether they may go on, which takes up to 0.01


def run(command: Sequence[str], failure: str) -> None:
    """Runs `command` to its end, however long it works; what it prints is not kept.

    Raises BuildError, which begins with `failure`: with the process's last line on stderr where it fails, and where it
    uses less than LEAST of a core for STILL_S seconds, after which it is ended.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        worked = 0.0
        try:
            while True:
                try:
                    _, errors = process.communicate(timeout=STILL_S)
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
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise BuildError(f"{failure}: {last}")


def _processor_s(pid: int) -> float:
    """What a process has used of the processor since it began, in seconds (proc(5), `stat`, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
