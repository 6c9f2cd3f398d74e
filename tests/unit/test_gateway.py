"""What a gateway makes of its process before it listens."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """if True:
    import logging, resource
    from eca_service.gateway import allow_files
    logging.basicConfig()
    allow_files()
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("hard", "told"), [(256, True), (2048, False)])
def test_few_files_are_told(hard: int, told: bool) -> None:
    """Four hundred connections used up 256, and neither the callers nor the log were told why they were closed."""
    command = f'ulimit -Sn 200 && ulimit -Hn {hard} && exec "$0" -c "$1"'
    done = subprocess.run(["bash", "-c", command, sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == f"({hard}, {hard})\n", "the soft limit is raised to the hard one"
    assert (f"may have {hard} files open" in done.stderr) == told
