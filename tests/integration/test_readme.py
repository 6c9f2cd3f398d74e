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


PAGES = [
    *ROOT.glob("*.md"),
    ROOT / "model_repository" / "README.md",
    *(page for folder in ("build", "deploy", "service", "tests") for page in (ROOT / folder).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and where they name a heading, to one that it has."""
    for link in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text()):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, link


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


def answers(service: Service, folder: Path, language: str, *command: str, before: str = "") -> list[str]:
    """What each block of the service's README in `language` prints, after `before`, beside two demo images."""
    for label in ("cat", "dog"):
        shutil.copy(ROOT / "build" / "demo" / "images" / f"{label}-2.jpg", folder / f"{label}.jpg")
    page = (ROOT / "service" / "README.md").read_text()
    printed = []
    for block in re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        script = before + block.replace("http://127.0.0.1:8080", service.url)
        script = script.replace("127.0.0.1:8081", f"127.0.0.1:{service.grpc_port}")
        done = subprocess.run([*command, script], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def test_the_service_s_python_works(service: Service, tmp_path: Path) -> None:
    client, tritonclient = answers(service, tmp_path, "python", sys.executable, "-c")
    assert [line.split()[:2] for line in client.splitlines()] == [
        [f"{label}.jpg", f"resnet14-{kind}"] for label in ("cat", "dog") for kind in ("se", "eca")
    ]
    assert tritonclient.startswith("[b'cat' b'dog'] [0.")


def test_the_service_s_curl_works(service: Service, tmp_path: Path) -> None:
    (printed,) = answers(service, tmp_path, "sh", "bash", "-ec")
    results = [json.loads(line)["results"] for line in printed.replace("}{", "}\n{").splitlines()]
    labels = [[result["predictions"][0]["label"] for result in found] for found in results]
    assert labels == [["cat"], ["cat", "dog"]]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed; it is Debian's package `nodejs`")
def test_the_service_s_javascript_works(service: Service, tmp_path: Path) -> None:
    before = 'import {readFileSync} from "fs"; const file = readFileSync("cat.jpg");'
    assert answers(service, tmp_path, "js", "node", "--input-type=module", "-e", before=before) == ["cat\n"]
