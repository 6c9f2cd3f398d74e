"""Two gateways and three Tritons on addresses of their own: spread, one cut off, one added. See deploy/scaling.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy import namespaces
from deploy.scaling import SPREAD_IMAGES, Figures
from tests.integration.conftest import MODEL, ROOT

REASON = namespaces.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def start(repository: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.scaling", "--json", "--model", MODEL, "--repository", str(repository)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def small(repository: Path, tmp_path: Path) -> Path:
    """One network alone: three Tritons with six each would load for longer than the scenario waits."""
    shutil.copytree(repository / MODEL, tmp_path / "repository" / MODEL)
    return tmp_path / "repository"


def below(pid: int) -> list[int]:
    """All processes that `pid` started, and theirs; none where it has ended."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(found for child in children for found in below(child))]


@pytest.mark.quiet
def test_load_goes_to_all_one_cut_off_loses_nothing_and_a_new_one_is_found(small: Path) -> None:
    scenario = start(small)
    out, errors = scenario.communicate(timeout=180)
    assert scenario.returncode == 0, errors
    figures = Figures(**json.loads(out))
    assert figures.found_s < 5
    assert len(figures.shares) == 3
    assert all(abs(share - 1 / 3) < 0.1 / 3 for share in figures.shares), figures.shares
    assert figures.codes.keys() == {"200"}, figures.codes
    assert figures.codes["200"] > SPREAD_IMAGES
    assert figures.answered_while_cut_off > 50
    assert figures.longest_while_cut_off_s < 5
    assert figures.back_s < 10


def test_nothing_stays_of_one_that_is_killed(repository: Path) -> None:
    scenario = start(repository)
    end = time.monotonic() + 30
    while len(started := below(scenario.pid)) < 10:
        assert scenario.poll() is None
        assert time.monotonic() < end, started
        time.sleep(0.1)
    scenario.send_signal(signal.SIGKILL)
    scenario.communicate(timeout=10)
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end + 10
        time.sleep(0.1)
    own = ("switch", "triton", "gateway")  # others, such as a Docker engine, make links of theirs meanwhile
    assert not [link for link in os.listdir("/sys/class/net") if link.startswith(own)]
