"""The memory that a gateway may take, held against its container's limit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eca_service import memory
from eca_service.doctor import machine
from eca_service.settings import Settings

from tests.unit.test_contract import CONTRACT
from tests.unit.test_preflight import publish

# what the compose file and the chart give, which is for one worker and four threads, see deploy/capacity.md
GIVEN: dict[str, Any] = {"workers": 1, "decode_threads": 4, "triton_url": "127.0.0.1:1"}

# the gateway in a container whose limit is in the file named first
SCRIPT = """if True:
    import pathlib, sys
    from eca_service import memory
    from eca_service.cli import main
    memory.LIMITS = (pathlib.Path(sys.argv[1]),)
    main(["gateway", "--triton-url", "127.0.0.1:1", "--http-port", "0", "--grpc-port", "0", *sys.argv[2:]])
"""


@pytest.fixture(params=["memory.max", "memory/memory.limit_in_bytes"])
def limit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of either version of cgroups, in which the other's is not."""
    places = tuple(tmp_path / place.relative_to("/sys/fs/cgroup") for place in memory.LIMITS)
    monkeypatch.setattr(memory, "LIMITS", places)
    file: Path = tmp_path / request.param
    assert file in places
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
    file = tmp_path / "memory.max"
    file.write_text(f"{2 << 30}\n")
    options = ["--repository", tmp_path / "models", "--decode-threads", threads, "--log-format", "text"]
    command = [sys.executable, "-c", SCRIPT, file, *options]
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
