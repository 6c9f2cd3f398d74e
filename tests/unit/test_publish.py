"""A version appears whole or not at all."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from eca_build.errors import BuildError
from eca_build.publish import publish, restore, staging, versions
from eca_build.scratch import scratch


def fill(staged: Path, version: int, config: str = 'name: "m"', labels: str = "a\nb\n") -> None:
    (staged / "config.pbtxt").write_text(config)
    (staged / "labels.txt").write_text(labels)
    (staged / str(version)).mkdir()
    for name in ("contract.json", "golden.npy", "model.onnx"):
        (staged / str(version) / name).write_bytes(b"x")


def test_versions_follow_each_other(tmp_path: Path) -> None:
    repository = tmp_path / "new" / "repository"
    for version in (1, 2):
        with staging(repository) as staged:
            fill(staged, version)
            publish(staged, repository, "m", version)
    assert versions(repository, "m") == [1, 2]
    assert [p.name for p in repository.parent.iterdir()] == ["repository"]


def test_other_folders_of_a_model_are_no_versions(tmp_path: Path) -> None:
    for name in ("2", "10", "\u00b2", "\u0663", "v3", "4.old"):
        (tmp_path / "m" / name).mkdir(parents=True)
    assert versions(tmp_path, "m") == [2, 10]


@pytest.mark.parametrize("gone", ["config.pbtxt", "labels.txt"])
def test_nothing_follows_in_a_model_that_lacks_a_file(tmp_path: Path, gone: str) -> None:
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        publish(staged, tmp_path / "r", "m", 1)
    (tmp_path / "r" / "m" / gone).unlink()
    with staging(tmp_path / "r") as staged:
        fill(staged, 2)
        with pytest.raises(BuildError, match=rf"r/m .*has no {gone}.* or give another --name"):
            publish(staged, tmp_path / "r", "m", 2)


@pytest.mark.parametrize(
    "changes", [{"config": 'name: "m" max_batch_size: 4'}, {"labels": "b\na\n"}, {"labels": "a\nb\ninstance_group\n"}]
)
def test_other_tensors_or_labels_need_another_name(tmp_path: Path, changes: dict[str, str]) -> None:
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        publish(staged, tmp_path / "r", "m", 1)
    with staging(tmp_path / "r") as staged:
        fill(staged, 2, **changes)
        with pytest.raises(BuildError, match=r"same options as before \(--labels, .*another --name"):
            publish(staged, tmp_path / "r", "m", 2)
    assert versions(tmp_path / "r", "m") == [1]


def test_how_a_model_is_served_may_be_tuned(tmp_path: Path) -> None:
    """A new version is published beside the old, and the operator's lines stay."""
    tuned = 'name: "m"\ndynamic_batching {\n  preferred_batch_size: [ 4 ]\n}\ninstance_group [\n  { count: 2 }\n]\n'
    texts = [tuned, 'name: "m"\ndynamic_batching { }\ninstance_group [ { count: 1 } ]\n']
    for version, text in enumerate(texts, 1):
        with staging(tmp_path / "r") as staged:
            fill(staged, version, text)
            publish(staged, tmp_path / "r", "m", version)
    assert versions(tmp_path / "r", "m") == [1, 2]
    assert (tmp_path / "r" / "m" / "config.pbtxt").read_text() == texts[0]


def test_only_what_is_gone_is_written_again(tmp_path: Path) -> None:
    home, staged = tmp_path / "m", tmp_path / "staged"
    for folder in (home, staged):
        folder.mkdir()
    (home / "config.pbtxt").write_text("tuned")
    texts = {"config.pbtxt": "as built", "labels.txt": "a"}
    assert [restore(staged, home, texts) for _ in range(2)] == [("labels.txt",), ()]
    assert {path.name: path.read_text() for path in home.iterdir()} == texts | {"config.pbtxt": "tuned"}


def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        publish(staged, tmp_path / "r", "m", 1)
    (tmp_path / "r" / "m" / "config.pbtxt").write_text('name: "m')
    with staging(tmp_path / "r") as staged:
        fill(staged, 2)
        with pytest.raises(BuildError, match=r"r/m/config\.pbtxt cannot be read .*restore it"):
            publish(staged, tmp_path / "r", "m", 2)


def test_one_build_at_a_time_stages(tmp_path: Path) -> None:
    """The second would remove what the first has."""
    begun, notes = threading.Event(), list[str]()

    def second() -> None:
        with staging(tmp_path / "r", notes.append):
            begun.set()

    thread = threading.Thread(target=second)
    with staging(tmp_path / "r", notes.append) as staged:
        assert not notes
        fill(staged, 1)
        thread.start()
        assert not begun.wait(0.3)
        assert (staged / "labels.txt").exists()
    thread.join(10)
    assert begun.is_set()
    assert notes == [f"another build publishes into {tmp_path / 'r'}; waiting until it has ended"]


def test_a_build_that_fails_leaves_nothing_beside_the_repository(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="refused"), staging(tmp_path / "r"):
        raise BuildError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def stage_and_hang(repository: str, until: str) -> None:
    with staging(Path(repository)) as staged:
        fill(staged, 1)
        end = time.monotonic() + 60
        while not Path(until).exists() and time.monotonic() < end:
            time.sleep(0.02)
        publish(staged, Path(repository), "m", 1)


def begun(repository: Path, until: Path) -> SpawnProcess:
    """A build that has staged all, and publishes as soon as there is a file `until`."""
    process = multiprocessing.get_context("spawn").Process(target=stage_and_hang, args=(str(repository), str(until)))
    process.start()
    staged_engine = repository.parent / f".{repository.name}.staging" / "1" / "model.onnx"
    deadline = time.monotonic() + 30
    while not staged_engine.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert staged_engine.exists()
    return process


def test_killed_build_leaves_nothing_visible(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    process = begun(repository, tmp_path / "go")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(repository.iterdir()) == []
    with staging(repository) as staged:  # the next build is not stopped by what the killed one left
        assert list(staged.iterdir()) == []
    assert not (tmp_path / ".r.staging").exists()


def test_a_build_that_waits_and_is_ended_takes_nothing_from_the_one_that_runs(tmp_path: Path) -> None:
    running = begun(tmp_path / "r", tmp_path / "go")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt), staging(tmp_path / "r"):
            pytest.fail("two builds staged at once")
    finally:
        signal.signal(signal.SIGALRM, before)
    (tmp_path / "go").touch()
    running.join(30)
    assert running.exitcode == 0
    assert (tmp_path / "r" / "m" / "1" / "model.onnx").read_bytes() == b"x"


@pytest.mark.parametrize("gone", ["config.pbtxt", "labels.txt", "1/contract.json", "1/golden.npy", "1/model.onnx"])
def test_what_is_not_complete_is_not_published(tmp_path: Path, gone: str) -> None:
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        (staged / gone).unlink()
        with pytest.raises(BuildError, match="disappeared while it was built; build again"):
            publish(staged, tmp_path / "r", "m", 1)
    assert not (tmp_path / "r" / "m").exists()


def test_a_folder_of_the_model_s_name(tmp_path: Path) -> None:
    (tmp_path / "r" / "m").mkdir(parents=True)
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        publish(staged, tmp_path / "r", "m", 1)
    assert versions(tmp_path / "r", "m") == [1]
    assert (tmp_path / "r" / "m" / "config.pbtxt").read_text() == 'name: "m"'
    (tmp_path / "r" / "notes").mkdir()
    (tmp_path / "r" / "notes" / "mine.txt").touch()
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        with pytest.raises(BuildError, match=r"notes is not a model.*another --name"):
            publish(staged, tmp_path / "r", "notes", 1)


def test_a_linked_repository_is_staged_beside_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "models")
    with staging(tmp_path / "link") as staged:
        assert staged.parent == tmp_path / "elsewhere"


def test_a_repository_that_links_to_itself_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with (
        pytest.raises(BuildError, match="link cannot be found: its symbolic links form a loop"),
        staging(tmp_path / "link"),
    ):
        pass


def test_a_repository_that_is_a_disk_of_its_own_is_a_sentence() -> None:
    sentence = r"^the model repository /dev/shm is a mount point.* --repository /dev/shm/models$"
    with pytest.raises(BuildError, match=sentence), staging(Path("/dev/shm")):
        pytest.fail("it was staged on another disk")


def test_unwritable_repository_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written"), staging(tmp_path / "file" / "r"):
        pass


def test_a_version_that_cannot_be_moved_there_is_told_by_where(tmp_path: Path) -> None:
    """Where it was made is gone when the sentence is read."""
    (tmp_path / "r" / "m" / "1" / "notes").mkdir(parents=True)
    (tmp_path / "r" / "m" / "config.pbtxt").write_text('name: "m"')
    (tmp_path / "r" / "m" / "labels.txt").write_text("a\nb\n")
    with staging(tmp_path / "r") as staged:
        fill(staged, 1)
        with pytest.raises(BuildError, match=r"r cannot be written: .*/r/m/1: Directory not empty$"):
            publish(staged, tmp_path / "r", "m", 1)


def test_what_else_cannot_be_written_is_not_the_repository_s(tmp_path: Path) -> None:
    sentence = r"^the build could not read or write a file: /tmp/full: No space left on device$"
    with pytest.raises(BuildError, match=sentence), staging(tmp_path / "r"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/full")
    places = re.escape(f"in {tmp_path} or {tempfile.gettempdir()}")  # which finds it, as every build does
    with pytest.raises(BuildError, match=f"a file: {places}: No space left on device$"), staging(tmp_path / "r"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a file that was open already
    with (
        pytest.raises(BuildError, match=f"{places}: 80 requested and 0 written; is a disk full"),
        staging(tmp_path / "r"),
    ):
        raise OSError("80 requested and 0 written")  # numpy's, which names no file


def test_a_disk_too_full_for_any_temporary_folder_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python tries whether it can write to one."""

    def none_fits() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", none_fits)
    sentence = rf"in {tmp_path} or where temporary files are: No usable temporary directory found in \['/tmp'\]$"
    with pytest.raises(BuildError, match=sentence), staging(tmp_path / "r"), scratch("verify"):
        pytest.fail("there is none")
