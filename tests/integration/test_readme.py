"""What the README says works."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import MODEL, ROOT, Service, environment, free_ports

README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_commands_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert targets == {"serve", "test", "bench"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_curl_line(service: Service) -> None:
    line = re.search(r"^curl .*$", README, re.MULTILINE)
    assert line is not None
    command = line[0].replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run(["bash", "-c", command + " -sS"], cwd=ROOT, capture_output=True, text=True, check=False)
    prediction = json.loads(done.stdout)["results"][0]["predictions"][0]
    assert prediction["label"] == "dog"
    end = time.monotonic() + 5
    while command not in service.log.read_text():  # `make serve` prints the same line
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.05)


@pytest.mark.skipif(not (ROOT / ".venv" / ".ready").exists(), reason="`make test` makes the environment")
def test_make_serve(demo: Path, tmp_path: Path) -> None:
    """The README's first command, with the engines that are there; Ctrl-C goes to all its processes and ends it."""
    ports = free_ports()
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            ["make", "serve", "PRECISION=fp32", "RUNTIME=onnxruntime"],
            cwd=ROOT,
            env=environment(demo, tmp_path, ports),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(process, f"http://127.0.0.1:{ports[0]}", tmp_path / "out", ports[2], ports[1])
    try:
        service.await_ready(timeout_s=120)
        said, end = f"ECA Serve is ready: {service.url} and gRPC on 127.0.0.1:{ports[1]}", time.monotonic() + 5
        while said not in (printed := service.log.read_text()):
            assert time.monotonic() < end, printed
            time.sleep(0.05)
        assert f"{MODEL}/1: nothing changed" in printed
        pids = [process.pid, *service.children()]
        assert len(pids) >= 2  # make's shell has become the gateway; below it is Triton
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    end = time.monotonic() + 10
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_the_service_s_python_works(service: Service, tmp_path: Path) -> None:
    """As it stands in its README, with two of the demo images."""
    page = (ROOT / "service" / "README.md").read_text()
    found = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    for label in ("cat", "dog"):
        shutil.copy(ROOT / "build" / "demo" / "images" / f"{label}-2.jpg", tmp_path / f"{label}.jpg")
    script = found[1].replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [f"{label}.jpg", f"resnet14-{kind}"] for label in ("cat", "dog") for kind in ("se", "eca")
    ]


def test_the_service_s_links_lead_somewhere() -> None:
    page = (ROOT / "service" / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page) if link]
    assert links
    assert [link for link in links if not (ROOT / "service" / link).exists()] == []
