"""`eca-build compile` as a command: what it leaves alone, what it makes anew, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.conftest import DEMO, MODEL, ROOT, build, run

NETWORK = ROOT / "build" / "demo" / f"{MODEL}.safetensors"


def test_building_again_changes_nothing(demo: Path) -> None:
    done = build(demo)
    assert (done.returncode, done.stdout.count("nothing changed")) == (0, len(DEMO))
    assert [p.name for p in (demo / MODEL).iterdir() if p.is_dir()] == ["1"]


def test_building_again_replaces_a_damaged_engine(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo / MODEL, tmp_path / "r" / MODEL)
    with (tmp_path / "r" / MODEL / "1" / "model.onnx").open("r+b") as engine:
        engine.seek(100_000)
        engine.write(bytes(7000))
    done = build(tmp_path / "r", MODEL)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "r" / MODEL).iterdir() if p.is_dir()) == ["1", "2"]


def test_the_figures_are_of_real_images(demo: Path) -> None:
    for contract in demo.glob("*/1/contract.json"):
        verification = json.loads(contract.read_text())["verification"]
        assert (verification["source"], verification["images"], verification["top1_agreement"]) == ("images/", 60, 1)


def test_build_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", "compile", str(NETWORK)]
    process = subprocess.Popen([*command, "--repository", str(repository)], start_new_session=True)
    staged = tmp_path / ".r.staging" / "trials" / "0" / "model.onnx"
    end = time.monotonic() + 60
    while not staged.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(repository.iterdir()) == []
    done = run("eca_build", "compile", NETWORK, "--repository", repository)
    assert (done.returncode, done.stderr) == (0, ""), "a build in a pipe is quiet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_wrong_number_of_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    done = run("eca_build", "compile", DEMO[0], "--labels", tmp_path / "labels.txt", "--repository", tmp_path / "r")
    assert done.returncode == 2
    assert "has 2 labels, the checkpoint has 10 classes" in done.stderr
    assert not (tmp_path / "r").exists()
