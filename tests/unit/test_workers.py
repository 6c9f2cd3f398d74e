"""How workers divide the service's limits, and what they tell each other."""

from __future__ import annotations

from pathlib import Path

from eca_service.peers import Peers
from eca_service.settings import Settings
from eca_service.workers import share


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
    board.write_bytes(bytes(3))
    first, second, watching = (Peers(index, board) for index in (0, 1, -1))
    second.tell(ready=False)
    assert first.unready() == [], "it does not listen yet"
    second.listening = True
    second.tell(ready=False)
    assert (first.unready(), second.unready()) == ([1], [])
    assert watching.listens(1)
    second.tell(ready=True)
    assert first.unready() == []
    second.tell(ready=False)
    watching.ended(1)
    assert first.unready() == []
    assert not watching.listens(1)


def test_alone() -> None:
    alone = Peers()
    alone.listening = True
    alone.tell(ready=False)
    assert alone.unready() == []
