"""What the killed left is removed, and nothing else is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from eca_service import leftovers


def test_only_what_a_dead_process_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(leftovers, "SHM", tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone, here = (f"eca-triton-{ended.pid}-x", f"eca_triton_{ended.pid}_8001_0"), f"eca-triton-{os.getpid()}-x"
    others = (f"eca-workers-{ended.pid}-x", f"eca_gateway_{ended.pid}_ab", "eca-triton-12", "eca-triton-none-x")
    for name in (*gone, here, *others):
        (tmp_path / name).mkdir() if "-" in name else (tmp_path / name).touch()
    leftovers.remove("triton")
    assert {path.name for path in tmp_path.iterdir()} == {here, *others}
    leftovers.remove("workers")
    leftovers.remove("gateway")
    assert {path.name for path in tmp_path.iterdir()} == {here, *others[2:]}


def test_what_another_user_left_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    user = os.geteuid()
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # which other users find
        folder = Path(name)
        monkeypatch.setattr("tempfile.tempdir", name)
        monkeypatch.setattr(leftovers, "SHM", folder)
        (folder / f"eca_triton_{ended.pid}_0").touch()
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            assert os.listdir(folder)
            leftovers.remove("triton")
            assert os.listdir(folder), "it may not be removed"
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_folder_that_is_held_is_locked_for_who_removes_what_is_old(tmp_path: Path) -> None:
    held, other = leftovers.hold(tmp_path), os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)  # nobody else is kept from it
    os.close(held)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
