"""The repository's file system hangs, as a network's does whose server is gone: what is loaded serves on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, golden_png, start
from tests.integration.test_reload import publish, served, until

HANGS_S = 8.0  # golden answers are asked for twice in it
MOST_S = 4.0  # for an answer, on a machine that has other things to do


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While it exists, `tmp_path / "repository"` hangs for every process that is started from here."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    library, made = tmp_path / "hanging.so", tmp_path / "hangs"
    source = Path(__file__).with_name("hanging.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    for name, value in (("LD_PRELOAD", library), ("HANG_UNDER", tmp_path / "repository"), ("HANG_WHILE", made)):
        monkeypatch.setenv(name, str(value))
    return made


@pytest.mark.parametrize("ended_by", [None, signal.SIGINT])
def test_a_start_says_that_it_waits(
    repository: Path, tmp_path: Path, switch: Path, ended_by: signal.Signals | None
) -> None:
    own = tmp_path / "repository"
    shutil.copytree(repository / MODEL, own / MODEL)
    switch.touch()
    service = start(own, tmp_path)
    try:
        until(lambda: f"{own} does not answer yet; waiting for its file system" in service.log.read_text(), service)
        if ended_by:
            service.process.send_signal(ended_by)
            assert service.process.wait(30), service.log.read_text()
        else:
            switch.unlink()
            service.await_ready()
    finally:
        switch.unlink(missing_ok=True)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)


def test_doctor_says_that_it_waits(repository: Path, tmp_path: Path, switch: Path) -> None:
    own = tmp_path / "repository"
    shutil.copytree(repository / MODEL, own / MODEL)
    switch.touch()
    command = [str(Path(sys.executable).with_name("eca-serve")), "doctor", "--repository", str(own)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stderr.readline() == f"{own} does not answer yet; waiting for its file system\n"
        switch.unlink()
        out, _ = process.communicate(timeout=60)
    assert f"{MODEL} version 1" in out


def test_what_is_loaded_serves_on(repository: Path, tmp_path: Path, switch: Path) -> None:
    own = tmp_path / "repository"
    shutil.copytree(repository / MODEL, own / MODEL)
    (tmp_path / "token").write_text("a-token-that-is-long-enough-for-it\n")
    (tmp_path / "token").chmod(0o600)
    service = start(own, tmp_path, management_token_file=tmp_path / "token")
    image, management = golden_png(repository, MODEL), {"authorization": "Bearer a-token-that-is-long-enough-for-it"}
    try:
        service.await_ready()
        switch.touch()
        longest, end = 0.0, time.monotonic() + HANGS_S
        while time.monotonic() < end:
            for protocol in PROTOCOLS:
                began = time.monotonic()
                assert call(protocol, service, MODEL, [image]).code == "ok"
                longest = max(longest, time.monotonic() - began)
            assert FRESH.get(f"{service.url}/readyz").status_code == 200, service.log.read_text()
        assert longest < MOST_S
        log = service.log.read_text()
        assert log.count(f"{own} does not answer; the loaded models are still served") == 1, log
        pinned = FRESH.put(f"{service.url}/v1/models/{MODEL}/pin", json={"version": 1}, headers=management)
        assert (pinned.status_code, pinned.json()["code"]) == (400, "bad_request")
        assert "its file system does not answer" in pinned.json()["detail"]
        explained = FRESH.post(f"{service.url}/v1/models/{MODEL}/explain", content=image, timeout=60)
        assert (explained.status_code, explained.json()["code"]) == (503, "backend_unavailable")

        switch.unlink()
        publish(own, 2)
        until(lambda: served(service) == 2, service)
        assert f"{own} answers again" in service.log.read_text()
        assert FRESH.post(f"{service.url}/v1/models/{MODEL}/explain", content=image, timeout=60).status_code == 200
        switch.touch()
        until(lambda: service.log.read_text().count("does not answer") == 2, service)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0, service.log.read_text()
    finally:
        switch.unlink(missing_ok=True)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)
