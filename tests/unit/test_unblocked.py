"""A log whose reader is slow, or gone, holds up nobody."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from eca_service import unblocked
from eca_service.unblocked import Unblocked, may_block

COUNT = 2000
LINE = 100


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Where it is read and where it is written."""
    if request.param == "pipe":
        reads, writes = os.pipe()
    else:
        reads, writes = (one.detach() for one in socket.socketpair())
    yield reads, writes
    for one in (reads, writes):
        try:
            os.close(one)
        except OSError:
            continue


def lines(handler: Unblocked, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        handler.handle(logging.makeLogRecord({"msg": f"{number:0{LINE - 1}}"}))


def read(descriptor: int, count: int) -> list[bytes]:
    found = b""
    while found.count(b"\n") < count:
        found += os.read(descriptor, 1 << 16)
    return found.splitlines()


def test_what_nobody_reads_yet_is_kept(ends: tuple[int, int]) -> None:
    reads, writes = ends
    assert may_block(writes)
    handler, began = Unblocked(writes), time.monotonic()
    lines(handler, COUNT * 4)  # more than any buffer of the kernel's
    assert time.monotonic() - began < 5
    assert [int(line) for line in read(reads, COUNT * 4)] == list(range(COUNT * 4))
    lines(handler, 1, 7)
    assert read(reads, 1) == [b"7".rjust(LINE - 1, b"0")]
    handler.close()


def test_how_many_were_lost_is_told(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = ends
    monkeypatch.setattr(unblocked, "MOST_BYTES", 100 * LINE)
    handler = Unblocked(writes)
    lines(handler, COUNT * 4)
    found: list[bytes] = []
    while b"are lost" not in (found[-1:] or [b""])[0]:
        found += read(reads, 1)
    *kept, told = found
    assert [int(line) for line in kept] == list(range(len(kept)))
    assert told == f"{COUNT * 4 - len(kept)} lines of the log are lost: nobody read it".encode()
    lines(handler, 1, 3)
    assert read(reads, 1) == [b"3".rjust(LINE - 1, b"0")]
    handler.close()


def test_a_reader_that_is_gone_is_no_trouble(ends: tuple[int, int]) -> None:
    reads, writes = ends
    handler = Unblocked(writes)
    os.close(reads)
    lines(handler, COUNT * 4)
    handler.flush()
    handler.close()


def test_what_waits_at_the_end_is_given_a_second() -> None:
    reads, writes = os.pipe()
    ends = (
        "import logging, sys; from eca_service import logs; logs.start('json', 'info')\n"
        f"for _ in range({COUNT}): logging.getLogger('x').info('y' * 100)"
    )
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", ends], stderr=writes) as process:
        os.close(writes)
        assert process.wait(30) == 0
    assert time.monotonic() - began < 20
    os.close(reads)
    with subprocess.Popen([sys.executable, "-c", ends], stderr=subprocess.PIPE) as process:
        _, told = process.communicate(timeout=30)
    assert told.count(b"\n") == COUNT, "nothing is lost where it is read"


def test_files_and_terminals_are_written_as_ever() -> None:
    with open(os.devnull, "wb") as file:
        assert not may_block(file.fileno())
    assert not may_block(9999)
