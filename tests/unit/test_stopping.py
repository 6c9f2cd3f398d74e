"""Signals that are awaited: none is lost, and none stops the wait for it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eca_service.stopping import ENDING, LONGEST_WAIT_S, Stopping, ending


def test_each_signal_is_seen_once_whatever_it_interrupts() -> None:
    count, seen = 500, 0
    turn = threading.Semaphore(1)

    def send() -> None:
        for number in range(count):
            assert turn.acquire(timeout=10)
            os.kill(os.getpid(), ENDING[number % len(ENDING)])

    sender = threading.Thread(target=send)
    with Stopping() as stopping:
        sender.start()
        end = time.monotonic() + 30
        while seen < count and time.monotonic() < end:
            if stopping.asked(0.0005):
                seen += 1
                turn.release()
        assert not stopping.asked(0.01)
    sender.join(1)
    assert seen == count


def test_a_wait_ends_at_the_next_signal_and_what_was_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        started = time.monotonic()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        stopping.wait()
        assert time.monotonic() - started < LONGEST_WAIT_S + 1
        assert not stopping.asked(0)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [*ENDING, signal.SIGHUP])
def test_what_is_to_be_cleaned_up_is_while_nobody_awaits_signals(number: signal.Signals) -> None:
    before, cleaned = signal.getsignal(number), []

    def asked_twice() -> None:
        with ending():
            try:
                with Stopping() as stopping:
                    os.kill(os.getpid(), number)
                    assert stopping.asked(1)
                os.kill(os.getpid(), number)
                time.sleep(1)
            finally:
                cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        asked_twice()
    assert (ended.value.code, cleaned, signal.getsignal(number)) == (0, [True], before)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_hangs_up_twice_asks_once_and_not_at_all_under_nohup(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Stopping() as stopping:
            if not ignored:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stopping.asked(1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.asked(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


WAITS = """
import os, pathlib, sys, time
from eca_service.stopping import Stopping
told, background = pathlib.Path(sys.argv[1]), sys.argv[2] == "background"
if background:
    os.setpgid(0, 0)
with Stopping() as stopping:
    end = time.monotonic() + 20
    asked = stopping.asked(0.05)
    told.with_name("pid").write_text(str(os.getpid()))
    told.with_name("pid").rename(told)
    while time.monotonic() < end and not asked:
        asked = stopping.asked(0.05)
    told.with_name("asked").write_text(f"{asked}, {stopping.asked(0.1)}")
"""


FIRST = """
import fcntl, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[3] == "nohup" else lambda *_: None)
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("runs", "ends"), [("foreground", True), ("background", False), ("nohup", False)])
def test_a_terminal_that_is_gone_asks_who_was_in_its_foreground(runs: str, ends: bool, tmp_path: Path) -> None:
    """Its first process, here as make is, is told by SIGHUP and waits; what was disowned in the background goes on."""
    told, asked = tmp_path / "told", tmp_path / "asked"
    terminal, ours = os.openpty()
    command = [sys.executable, "-c", FIRST, WAITS, str(told), runs]
    first = subprocess.Popen(command, stdin=ours, stdout=ours, stderr=ours, start_new_session=True)
    os.close(ours)
    try:
        end = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        os.close(terminal)
        end = time.monotonic() + (15 if ends else 1.5)
        while not asked.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert asked.exists() == ends
        if not ends:
            os.kill(int(told.read_text()), signal.SIGTERM)
    finally:
        first.wait(40)
    assert asked.read_text() == "True, False"
