"""The walk "serve your own checkpoint", line by line, with a checkpoint as ECA-Net's authors write them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.integration.conftest import FRESH, ROOT
from tests.ports import free_port

WALK = (ROOT / "service" / "docs" / "own-checkpoint.md").read_text()
DEMO = ROOT / "build" / "demo"
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", WALK, re.MULTILINE | re.DOTALL)


def write_as_the_authors(path: Path) -> None:
    """The demo network, as their training script saves it from DataParallel."""
    state = load_file(DEMO / "resnet14-eca.safetensors")
    theirs = OrderedDict((f"module.{key.replace('.attention.', '.eca.')}", value) for key, value in state.items())
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    held = {"epoch": 24, "arch": "eca_resnet14", "best_prec1": torch.tensor(88.35), "optimizer": momentum}
    torch.save({**held, "state_dict": theirs}, path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the walk begins with."""
    folder = tmp_path_factory.mktemp("own")
    write_as_the_authors(folder / "my.pth.tar")
    shutil.copy(DEMO / "labels.txt", folder)
    shutil.copytree(DEMO / "images", folder / "photos")
    for photo in (DEMO / "images").iterdir():
        label = photo.name.partition("-")[0]
        (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / "labelled" / label)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Free ports for what the walk starts."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")}
    ports = {f"ECA_{name}_PORT": str(free_port()) for name in ("HTTP", "GRPC", "TRITON_GRPC")}
    return kept | ports | {"ECA_URL": f"http://127.0.0.1:{ports['ECA_HTTP_PORT']}"}


@pytest.fixture(scope="module")
def outputs(place: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """What each line printed, by its first words; the service is up while they are looked at."""
    printed: dict[str, str] = {}
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    service: subprocess.Popen[bytes] | None = None
    try:
        for line in lines:
            command = line.replace(".venv/bin", str(BIN)).replace("http://127.0.0.1:8080", environment["ECA_URL"])
            if "eca-serve up" in line:
                with (place / "log").open("wb") as log:
                    service = subprocess.Popen(
                        ["bash", "-c", f"exec {command}"], cwd=place, env=environment, stderr=log
                    )
                _await_ready(environment["ECA_URL"])
                continue
            done = subprocess.run(
                ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}: {done.stderr}"
            printed[" ".join(line.removeprefix(".venv/bin/").split()[:2])] = done.stdout
        yield printed
    finally:
        if service:
            service.send_signal(signal.SIGINT)
            assert service.wait(30) == 0


def _await_ready(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if FRESH.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("not ready within 60 s")


def test_inspect_shows_what_the_walk_shows(outputs: dict[str, str]) -> None:
    (shown,) = blocks("text")
    assert shown.splitlines()
    assert set(shown.splitlines()) <= {line.rstrip() for line in outputs["eca-build inspect"].splitlines()}


def test_it_is_verified_and_published(outputs: dict[str, str], place: Path) -> None:
    assert "top-1 agreement 100%" in outputs["eca-build compile"]
    contract = json.loads((place / "my_models" / "my" / "1" / "contract.json").read_text())
    assert (contract["labels"][5], contract["verification"]["images"]) == ("dog", 60)
    assert contract["outputs"] == ["probabilities", "features", "gates"]


def test_it_answers(outputs: dict[str, str], place: Path) -> None:
    answer = json.loads(outputs["curl --data-binary"])
    assert (answer["model"], answer["results"][0]["predictions"][0]["label"]) == ("my", "dog")
    assert len(outputs["eca-serve classify"].splitlines()) == 60
    with Image.open(place / "map.png") as drawn:
        assert drawn.size == (32, 32)
    top1 = re.search(r"^top-1 +([\d.]+)%", outputs["eca-serve evaluate"], re.MULTILINE)
    assert top1 is not None
    assert float(top1[1]) > 70
    with Image.open(place / "confusion.png") as matrix:
        assert matrix.width > 560


def test_python_answers_too(outputs: dict[str, str], place: Path, environment: dict[str, str]) -> None:
    (script,) = blocks("python")
    script = script.replace("http://127.0.0.1:8080", environment["ECA_URL"])
    done = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"dog 99\.\d%\nphotos/dog-2.jpg dog\nphotos/ship-1.jpg ship\n", done.stdout), done.stdout


def test_going_back_is_of_the_walk_s_own_repository(
    outputs: dict[str, str], place: Path, environment: dict[str, str]
) -> None:
    """There is one version, so forward is the way that can be gone."""
    (back,) = re.findall(r"`\.venv/bin/(eca-serve rollback [^`]+)`", WALK)
    command = [str(BIN / "eca-serve"), *back.split()[1:], "--newest"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", WALK)
    assert links
    assert [link for link in links if not (ROOT / "service" / "docs" / link).exists()] == []
