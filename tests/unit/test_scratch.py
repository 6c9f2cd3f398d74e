"""Nothing stays of a build that is ended, nor of one that was killed once another has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from eca_build.scratch import scratch

WEIGHTS = Path(__file__).parents[2] / "build" / "demo" / "resnet14-eca.safetensors"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_ended_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """While the engine is verified in a process of its own; SIGTERM is what `docker stop` sends."""
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", "compile", str(WEIGHTS)]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen([*command, "--repository", str(tmp_path / "models")], env=environment) as process:
        while not (begun := list(tmp_path.glob("temporary/eca-build-*-verify-*"))) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        assert process.wait(20) == (128 + how if how is signal.SIGTERM else -how)
    assert begun
    assert list((tmp_path / "models").iterdir()) == []
    if how is signal.SIGTERM:
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith(("eca-", ".models"))]
    mine, end = str(tmp_path).encode(), time.monotonic() + 0.5  # less than the work takes
    while left := [one for one in Path("/proc").glob("[0-9]*/cmdline") if mine in cmdline(one)]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def test_what_a_killed_one_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    gone, others = f"eca-build-{ended.pid}-verify-x", (f"eca-build-{os.getpid()}-verify-x", "eca-build-none-x")
    for name in (gone, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").touch()
    with scratch("verify") as own:
        assert {path.name for path in tmp_path.iterdir()} == {own.name, *others}
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_what_a_process_of_another_container_has_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id means nothing here."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("quantise") as folder, subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        elsewhere = folder.rename(tmp_path / f"eca-build-{ended.pid}-quantise-x")
        with scratch("verify"):
            assert elsewhere.exists()
        elsewhere.rename(folder)
    assert not list(tmp_path.iterdir())


def cmdline(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # it has just ended
