"""Where `eca-build` begins: who ends it while its modules are imported sees no trace."""

from __future__ import annotations

import os
from contextlib import suppress

from eca_service.importing import imports

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch sets it where it makes the folder


def main() -> None:
    """The command line, once it is there."""
    given = os.environ.get(CACHE)
    try:
        with imports():
            from eca_build.cli import main as command
        command()
    finally:
        # to import PyTorch's compiler makes its cache, among the temporary files, and here nothing is put into it
        if not given and (made := os.environ.get(CACHE)):
            with suppress(OSError):  # another program's are in it
                os.rmdir(made)
