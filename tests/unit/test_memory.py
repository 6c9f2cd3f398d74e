"""The memory that a gateway may take, held against its container's limit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eca_service import cgroups, memory
from eca_service.doctor import machine
from eca_service.settings import Settings

from tests.unit.test_contract import CONTRACT
from tests.unit.test_preflight import publish

# what the compose file and the chart give, which is for one worker and four threads, see deploy/capacity.md
GIVEN: dict[str, Any] = {"workers": 1, "decode_threads": 4, "triton_url": "127.0.0.1:1"}

# the gateway in a container whose control groups are in the folder named first
SCRIPT = """if True:
    import pathlib, sys
    from eca_service import cgroups
    from eca_service.cli import main
    cgroups.ROOT = pathlib.Path(sys.argv[1])
    cgroups.MINE = cgroups.ROOT / "mine"
    main(["gateway", "--triton-url", "127.0.0.1:1", "--http-port", "0", "--grpc-port", "0", *sys.argv[2:]])
"""


@pytest.fixture(params=[("0::/", "memory.max"), ("4:memory:/docker/0a1b", "memory/memory.limit_in_bytes")])
def limit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of either version of control groups, in which the other's is not."""
    mine, place = request.param
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "MINE", tmp_path / "mine")
    cgroups.MINE.write_text(f"{mine}\n")
    file: Path = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    return file


@pytest.mark.parametrize(
    ("asked", "enough"),
    [({}, True), ({"decode_threads": 48}, False), ({"workers": 2}, False), ({"max_pixels": 100_000_000}, False)],
)
def test_two_gib_are_for_one_worker_and_four_threads(limit: Path, asked: dict[str, Any], enough: bool) -> None:
    limit.write_text(f"{2 << 30}\n")
    settings = Settings(**GIVEN | asked)
    assert (memory.shortage(settings) is None) == enough
    told = [finding.text for finding in machine(settings) if "the container's limit is 2.0" in finding.text]
    assert len(told) == (not enough), "doctor says so too"


@pytest.mark.parametrize("written", ["max\n", "9223372036854771712\n", None])
def test_without_a_limit_nothing_is_short(limit: Path, written: str | None) -> None:
    if written:
        limit.write_text(written)
    assert memory.shortage(Settings(**GIVEN | {"decode_threads": 256, "workers": 8})) is None


@pytest.mark.parametrize("threads", [4, 48])
def test_the_log_says_so_at_the_start(tmp_path: Path, threads: int) -> None:
    publish(tmp_path / "models", CONTRACT)
    (tmp_path / "mine").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    options = ["--repository", tmp_path / "models", "--decode-threads", threads, "--log-format", "text"]
    command = [sys.executable, "-c", SCRIPT, tmp_path, *options]
    with subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True) as gateway:
        assert gateway.stderr
        log = ""
        while "Application startup complete" not in log and (line := gateway.stderr.readline()):
            log += line
        gateway.send_signal(signal.SIGTERM)
        gateway.stderr.read()
    assert gateway.returncode == 0, log
    warned = [line for line in log.splitlines() if "warning" in line.lower() and "the container's limit is 2.0" in line]
    assert len(warned) == (threads == 48), log
