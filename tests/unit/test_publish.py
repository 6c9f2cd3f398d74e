"""A version appears whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from eca_build.errors import BuildError
from eca_build.publish import publish, staging, versions


def fill(staged: Path, version: int, config: str = "name", labels: str = "a\nb\n") -> None:
    (staged / "config.pbtxt").write_text(config)
    (staged / "labels.txt").write_text(labels)
    (staged / str(version)).mkdir()
    (staged / str(version) / "model.onnx").write_bytes(b"x")


def test_versions_follow_each_other(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for version in (1, 2):
        with staging(repository) as staged:
            fill(staged, version)
            publish(staged, repository, "m", version)
    assert versions(repository, "m") == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize("changes", [{"config": "other"}, {"labels": "b\na\n"}])
def test_other_tensors_or_labels_need_another_name(tmp_path: Path, changes: dict[str, str]) -> None:
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        publish(staged, tmp_path / "r", "m", 1)
    with staging(tmp_path / "r") as staged:
        fill(staged, 2, **changes)
        with pytest.raises(BuildError, match="another --name"):
            publish(staged, tmp_path / "r", "m", 2)
    assert versions(tmp_path / "r", "m") == [1]


def test_one_build_at_a_time_stages(tmp_path: Path) -> None:
    """The second would remove what the first has."""
    begun = threading.Event()

    def second() -> None:
        with staging(tmp_path / "r"):
            begun.set()

    thread = threading.Thread(target=second)
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        thread.start()
        assert not begun.wait(0.3)
        assert (staged / "labels.txt").exists()
    thread.join(10)
    assert begun.is_set()


def stage_and_hang(repository: str) -> None:
    with staging(Path(repository)) as staged:
        fill(staged, 1)
        time.sleep(60)


def test_killed_build_leaves_nothing_visible(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    process = multiprocessing.get_context("spawn").Process(target=stage_and_hang, args=(str(repository),))
    process.start()
    staged_engine = tmp_path / ".r.staging" / "1" / "model.onnx"
    deadline = time.monotonic() + 30
    while not staged_engine.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert staged_engine.exists()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(repository.iterdir()) == []
    with staging(repository) as staged:  # the next build is not stopped by what the killed one left
        assert list(staged.iterdir()) == []
    assert not (tmp_path / ".r.staging").exists()


def test_unwritable_repository_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written"), staging(tmp_path / "file" / "r"):
        pass
