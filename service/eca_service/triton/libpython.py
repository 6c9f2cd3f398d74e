"""This Python's shared library, which the stub of Triton's Python backend loads, for the models that it runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
NAME = f"libpython{VERSION}.so.1.0"


def link(folder: Path) -> None:
    """Links it into `folder` where it lies beside this Python, as pyenv, conda and uv have it.

    The loader does not look there; and of the whole of that folder other libraries would take the place of Triton's.
    """
    for place in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")):
        if place and (library := Path(place, NAME)).is_file():
            (folder / NAME).symlink_to(library)
            return


def lacking(stub: Path, environment: dict[str, str]) -> str | None:
    """What keeps `stub` from starting, and what to do, where the loader does not find all of its libraries."""
    done = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False)
    _, found, reason = done.stderr.strip().partition("error while loading shared libraries: ")
    if not found:
        return None
    return (
        f"Triton's backend in Python does not start: {reason}; install this Python's shared library (on Debian and "
        f"Ubuntu libpython{VERSION})"
    )
