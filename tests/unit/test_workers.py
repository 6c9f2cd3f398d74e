"""How workers divide the service's limits, and what they tell each other."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eca_service import metrics, peers
from eca_service.peers import Peers, make_board
from eca_service.settings import Settings
from eca_service.stopping import Stopping
from eca_service.workers import HEALTHY_AFTER_S, _end, _ended, _Worker, share

# A worker that ends with its argument as status when it is asked as often as its second argument says.
ASKED = """
import signal, sys, threading
status, times = map(int, sys.argv[1:])
asked = threading.Semaphore(0)
signal.signal(signal.SIGTERM, lambda *_: asked.release())
print(flush=True)
for _ in range(times):
    while not asked.acquire(timeout=0.01):
        pass
sys.exit(status)
"""


def test_limits_are_divided() -> None:
    part = share(Settings(workers=4, max_inflight_images=1000, max_inflight_bytes=1 << 30, decode_threads=8))
    assert (part.max_inflight_images, part.max_inflight_bytes, part.decode_threads) == (250, 1 << 28, 2)


def test_a_part_takes_the_largest_request() -> None:
    part = share(Settings(workers=100, max_images=64, max_body_bytes=32 << 20, decode_threads=8))
    assert (part.max_inflight_images, part.max_inflight_bytes, part.decode_threads) == (64, 32 << 20, 1)
    part = share(Settings(workers=2, max_images=64, max_inflight_images=3))
    assert part.max_inflight_images == 3, "no part is larger than the whole"


def test_who_listens_must_be_ready(tmp_path: Path) -> None:
    board = tmp_path / "board"
    make_board(board, 3)
    first, second, watching = (Peers(index, board) for index in (0, 1, -1))
    second.tell(ready=False)
    assert first.unready() == [], "it does not listen yet"
    second.listening = True
    second.tell(ready=False)
    assert (first.unready(), second.unready()) == ([1], [])
    assert (first.others_listen, second.others_listen, watching.others_listen) == (True, False, True)
    assert not first.others_ready
    second.tell(ready=True)
    assert first.unready() == []
    assert (first.others_ready, second.others_ready) == (True, False)
    second.tell(ready=False)
    watching.ended(1)
    assert first.unready() == []
    assert not watching.others_listen


async def test_a_beat_is_another_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_EVERY_S", 0)
    make_board(tmp_path / "board", 2)
    worker, watching = Peers(1, tmp_path / "board"), Peers(-1, tmp_path / "board")
    assert watching.last_beat(1) == 0
    beating, seen = asyncio.create_task(worker.beat()), []
    for _ in range(600):
        await asyncio.sleep(0)
        seen.append(watching.last_beat(1))
    beating.cancel()
    assert 0 not in seen
    assert [one for one, other in itertools.pairwise(seen) if one == other] == []
    assert (watching.last_beat(0), watching.others_listen) == (0, False), "it is no state, nor another's"
    watching.ended(1)
    assert watching.last_beat(1) == 0


def test_alone() -> None:
    alone = Peers()
    alone.listening = True
    alone.tell(ready=False)
    assert alone.unready() == []


def test_one_that_dies_again_and_again_is_started_ever_more_seldom(tmp_path: Path) -> None:
    """Until it has lived for long, as the one before it may have died of something else."""
    make_board(tmp_path / "board", 2)
    metrics.reserve(tmp_path, 0)
    worker, (itself, other, watching) = _Worker(0), (Peers(index, tmp_path / "board") for index in (0, 1, -1))
    itself.listening = other.listening = True

    def dies(lived_s: float) -> float:
        itself.tell(ready=True)
        worker.process = subprocess.Popen([sys.executable, "-c", ""])
        worker.process.wait(60)
        now = time.monotonic()
        worker.started = now - lived_s
        assert _ended(worker, watching, tmp_path)
        assert now + worker.pause_s <= worker.start_at <= time.monotonic() + worker.pause_s
        assert not _ended(worker, watching, tmp_path), "once"
        assert not other.others_listen
        return worker.pause_s

    assert [dies(0) for _ in range(10)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert worker.again, "it had begun to answer"
    assert [dies(HEALTHY_AFTER_S + 1), dies(0)] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("asked", "again", "patience_s", "code"),
    [
        ([(0, 1), (0, 1)], False, 60, 0),
        ([(0, 1), (3, 1)], False, 60, 1),
        ([(0, 1), (0, 2)], True, 60, 0),
        ([(0, 1), (0, 2)], False, 0.2, 1),
    ],
    ids=["both end", "one fails", "one is asked again", "one does not end in time"],
)
def test_all_are_asked_to_end_and_waited_for(
    asked: list[tuple[int, int]], again: bool, patience_s: float, code: int
) -> None:
    workers = [_Worker(index) for index in range(len(asked) + 1)]  # the last one is not there just now
    over = threading.Event()

    def ask_again() -> None:
        while not over.wait(0.1):
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask_again)
    try:
        with Stopping() as stopping:
            for worker, (status, times) in zip(workers, asked, strict=False):
                command = [sys.executable, "-c", ASKED, str(status), str(times)]
                worker.process = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert worker.process.stdout
                worker.process.stdout.readline()
            if again:
                asking.start()
            try:
                assert _end(workers, stopping, patience_s) == code
            finally:
                over.set()
                if again:
                    asking.join()
    finally:
        for worker in workers:
            if worker.process:
                worker.process.kill()
                worker.process.communicate()


def test_what_workers_count_has_its_room_before(tmp_path: Path) -> None:
    """Files that are mapped are a SIGBUS where they have holes and the disk is full."""
    metrics.reserve(tmp_path, 0)
    count = "from eca_service import metrics; metrics.images.labels('m').inc(); metrics.inflight.set(1)"
    show = f"{count}; print(metrics.exposition().decode(), end='')"
    environment = os.environ | metrics.shared_by(tmp_path, 0)
    shown = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
        metrics.ended(tmp_path, 0)
        shown.append({sample.name: sample.value for sample in metrics.parse(done.stdout) if sample.value})
    assert [one["eca_images_total"] for one in shown] == [1, 2], "a successor goes on"
    assert [one["eca_inflight"] for one in shown] == [1, 1]
    files = list(tmp_path.iterdir())
    assert {file.name for file in files} == {f"{kind}_0.db" for kind in metrics.ROOM}
    assert [file.name for file in files if file.stat().st_blocks * 512 < file.stat().st_size] == []
