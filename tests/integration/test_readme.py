"""What the README says works."""

from __future__ import annotations

import json
import re
import subprocess
import time

from tests.integration.conftest import ROOT, Service

README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_commands_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert targets == {"serve", "test"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_curl_line(service: Service) -> None:
    line = re.search(r"^curl .*$", README, re.MULTILINE)
    assert line is not None
    assert f"  {line[0]}".replace("http://127.0.0.1:8080", service.url) in service.log.read_text(), (
        "the same is printed"
    )
    command = line[0].replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run(["bash", "-c", command + " -sS"], cwd=ROOT, capture_output=True, text=True, check=False)
    prediction = json.loads(done.stdout)["results"][0]["predictions"][0]
    assert prediction["label"] == "dog"
    end = time.monotonic() + 5
    while command not in service.log.read_text():  # `make serve` prints the same line
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.05)
