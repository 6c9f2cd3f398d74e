"""Calls to a file system that hangs: a pipe that nobody writes keeps whoever opens it, as such a file system does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eca_service import disk


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Reading it hangs until it is written."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


async def test_what_a_call_returns_or_raises_is_its_callers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    assert await disk.call((tmp_path / "file").read_bytes) == b"here"
    assert await disk.call(os.path.join, "a", "b", patience_s=9) == os.path.join("a", "b")
    with pytest.raises(FileNotFoundError):
        await disk.call((tmp_path / "none").read_bytes)
    assert [await disk.is_folder(tmp_path), await disk.is_folder(tmp_path / "file")] == [True, False]


async def test_one_that_hangs_keeps_nobody_and_is_not_joined_by_others(pipe: Path) -> None:
    started = time.monotonic()
    with pytest.raises(disk.NoAnswer, match="its file system does not answer"):
        await disk.call(pipe.read_bytes, patience_s=0.2)
    assert 0.2 <= time.monotonic() - started < 10
    before = threading.active_count()
    with pytest.raises(disk.NoAnswer):
        await disk.call(pipe.read_bytes, patience_s=60)
    assert await disk.is_folder(pipe.parent) is None
    assert threading.active_count() == before
    pipe.write_bytes(b"it is back")
    while await disk.is_folder(pipe.parent) is None:
        await asyncio.sleep(0.01)
    assert await disk.is_folder(pipe.parent)


async def test_a_call_that_is_given_up_in_time_hinders_no_other(pipe: Path) -> None:
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        await asyncio.wait_for(disk.call(pipe.read_bytes, patience_s=60), 0.1)
    assert await disk.is_folder(pipe.parent)
    pipe.write_bytes(b"for nobody")


def test_the_process_ends_though_a_call_hangs(pipe: Path) -> None:
    program = f"""
import asyncio, pathlib
from eca_service import disk
try:
    asyncio.run(disk.call(pathlib.Path({str(pipe)!r}).read_bytes, patience_s=0.1))
except disk.NoAnswer as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("its file system does not answer\n", "", 0)
