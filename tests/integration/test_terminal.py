"""A service whose terminal is closed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import start

BELOW_A_TERMINAL_S_FIRST_PROCESS = """
import os, signal
os.setsid()
os.dup2(os.open({terminal!r}, os.O_RDWR), 0)
signal.signal(signal.SIGHUP, lambda *_: None)
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_it_ends_with_its_terminal_though_the_first_process_there_waits_for_it(
    repository: Path, tmp_path: Path, workers: int
) -> None:
    """As make does, which alone is sent SIGHUP."""
    terminal, ours = os.openpty()
    before = BELOW_A_TERMINAL_S_FIRST_PROCESS.format(terminal=os.ttyname(ours))
    service = start(repository, tmp_path, before=before, workers=workers)
    try:
        service.await_ready()
        os.close(ours)
        os.close(terminal)
        assert service.process.wait(30) == 0, service.log.read_text()
    finally:
        for pid in service.children():
            os.kill(pid, signal.SIGKILL)
        service.process.kill()
        service.process.wait(30)
