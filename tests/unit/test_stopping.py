"""Signals that are awaited: none is lost, and none stops the wait for it."""

import os
import signal
import threading
import time

import pytest
from eca_service.stopping import ENDING, LONGEST_WAIT_S, Stopping


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
