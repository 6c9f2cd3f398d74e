"""Temporary folders of a build's steps."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from eca_service.leftovers import held, hold

NAME = re.compile(r"eca-build-(\d+)-.+")  # the number is its process's


@contextlib.contextmanager
def scratch(step: str) -> Iterator[Path]:
    """A folder that goes with the block; those that killed builds have left go first."""
    for path in Path(tempfile.gettempdir()).glob("eca-build-*"):
        found = NAME.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists() and not held(path):
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"eca-build-{os.getpid()}-{step}-") as folder:
        lock = hold(Path(folder))
        try:
            yield Path(folder)
        finally:
            os.close(lock)
