"""What processes of ours that were killed have left in /tmp and /dev/shm, under names that hold their ids."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

SHM = Path("/dev/shm")
NAME = re.compile(r"eca[-_](?:gateway|triton|workers)[-_](\d+)[-_].+")


def abandoned(name: str) -> bool:
    """Whether it is the name of something whose process is gone."""
    match = NAME.fullmatch(name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


def hold(folder: Path) -> int:
    """Keeps who removes what is old in /tmp from it, until the descriptor is closed: tmpfiles.d(5) passes by what is
    locked. Our files there are mapped, which does not make them younger. So do we, of processes that cannot be seen.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def held(folder: Path) -> bool:
    """Whether a process holds it: in another container it has another id."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def remove(kind: Literal["gateway", "triton", "workers"]) -> None:
    """Removes what is abandoned of one kind; of another it may be that of a process which cannot be seen from here."""
    for folder in (Path(tempfile.gettempdir()), SHM):
        for path in folder.glob(f"eca[-_]{kind}[-_]*"):
            if abandoned(path.name) and not held(path):
                with contextlib.suppress(OSError):  # another user's, who may have left it, or put it there
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
