"""As many threads as the container's or the service's share of the processor is worth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from eca_service import cgroups

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the control groups are; which is this process's is to be written to `mine`."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "MINE", tmp_path / "mine")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.mark.parametrize(
    ("quota", "cores"), [("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 64)]
)
def test_a_container_of_the_second_version(root: Path, quota: str, cores: int) -> None:
    write(root / "mine", "0::/")
    write(root / "cpu.max", quota)
    assert cgroups.cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("10000", 1), ("-1", 64), ("99900000", 64)])
@pytest.mark.parametrize("folder", ["cpu", "cpu/docker/0a1b"])  # within the container, and where its host's are seen
def test_a_container_of_the_first_version(root: Path, folder: str, quota: str, cores: int) -> None:
    write(root / "mine", "5:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n0::/")
    write(root / folder / "cpu.cfs_quota_us", quota)
    write(root / folder / "cpu.cfs_period_us", "100000")
    assert cgroups.cores() == cores


def test_the_least_of_the_groups_above_counts(root: Path) -> None:
    write(root / "mine", "0::/system.slice/eca.service")
    write(root / "system.slice" / "cpu.max", "300000 100000")
    write(root / "system.slice" / "memory.max", "max")
    write(root / "system.slice" / "eca.service" / "cpu.max", "800000 100000")
    write(root / "system.slice" / "eca.service" / "memory.max", "1000000")
    assert (cgroups.cores(), cgroups.memory_bytes()) == (3, 1000000)


def test_without_control_groups_there_is_no_limit(root: Path) -> None:
    assert (cgroups.cores(), cgroups.memory_bytes()) == (64, None)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine that has half a core."""
    folder = Path(f"/sys/fs/cgroup/cpu/eca-test-{os.getpid()}")
    file, text = "cpu.cfs_quota_us", "50000"
    if not folder.parent.exists():
        folder, file, text = Path(f"/sys/fs/cgroup/eca-test-{os.getpid()}"), "cpu.max", "50000 100000"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (folder / file).write_text(text)
        except OSError as error:
            pytest.skip(f"the control group has no quota: {error}")
        yield folder
    finally:
        folder.rmdir()


TOLD = {
    "the service": "from eca_service.settings import Settings\nprint(Settings().decode_threads)",
    "the build": """if True:
        import click
        from eca_build import cli
        @cli.main.command()
        def told():
            import torch
            print(torch.get_num_threads())
        cli.main(["told"])""",
}


@pytest.mark.skipif(HERE < 2, reason="one core is no less than one core")
@pytest.mark.parametrize("which", TOLD)
def test_in_a_real_group(group: Path, which: str) -> None:
    script = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n{TOLD[which]}"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1"]
