"""Temporary folders of a build's steps."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"eca-build-(\d+)-.+")  # the number is its process's


@contextlib.contextmanager
def scratch(step: str) -> Iterator[Path]:
    """A folder that goes with the block; those that killed builds have left go first."""
    for path in Path(tempfile.gettempdir()).glob("eca-build-*"):
        if (found := NAME.fullmatch(path.name)) and not Path(f"/proc/{found[1]}").exists():
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"eca-build-{os.getpid()}-{step}-") as folder:
        yield Path(folder)
