"""The images: small, without what a service never runs, pinned, labelled, listed, cached. Needs a Docker engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.sbom import sbom
from tests.deploy.stack import ROOT, Stack, docker, versions

OWN = ("build", "triton", "gateway")


def image_of(stack: Stack, service: str) -> str:
    return docker("inspect", "-f", "{{.Config.Image}}", stack.container(service))


@pytest.mark.parametrize("service", ["gateway", "triton"])
def test_runs_with_as_little_as_it_needs(stack: Stack, service: str) -> None:
    container = stack.container(service)
    assert docker("exec", container, "id", "-u") == "10001"
    finds = "for tool in gcc cc pip apt dpkg perl; do command -v $tool; done; python -c 'import torch' 2>&1 | tail -n 1"
    assert docker("exec", container, "sh", "-c", finds).splitlines() == ["ModuleNotFoundError: No module named 'torch'"]
    writes = "touch /opt/eca/x /models/x 2>&1; true"
    assert docker("exec", container, "sh", "-c", writes).count("Read-only file system") == 2
    assert docker("inspect", "-f", "{{.HostConfig.CapDrop}} {{.HostConfig.Privileged}}", container) == "[ALL] false"
    log, memory = "{{json .HostConfig.LogConfig}}", "{{.HostConfig.Memory}}"
    assert docker("inspect", "-f", log, container) == '{"Type":"json-file","Config":{"max-file":"3","max-size":"10m"}}'
    assert int(docker("inspect", "-f", memory, container)) > 0


def test_gateway_s_image_is_small(stack: Stack) -> None:
    image = docker("inspect", "-f", "{{.Image}}", stack.container("gateway"))
    assert int(docker("image", "inspect", "-f", "{{.Size}}", image)) < 250e6


def test_bill_of_materials_lists_what_was_pinned(stack: Stack) -> None:
    image = docker("inspect", "-f", "{{.Config.Image}}", stack.container("gateway"))
    found = {component["purl"] for component in sbom(image)["components"]}  # type: ignore[attr-defined]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition(";")[0].lower().replace("_", "-") for line in lines}
    python = {purl.removeprefix("pkg:pypi/").replace("@", "==") for purl in found if purl.startswith("pkg:pypi/")}
    own = f"eca-serve=={versions()['ECA_VERSION']}"
    assert own in python
    assert python - pins == {own}, "everything from the package index is pinned"
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in found)


def test_no_image_is_fetched_to_be_listed(stack: Stack) -> None:
    """It would be run: whoever has the name in a registry is not who built it here."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        sbom("eca-serve/never-built:1")
    assert "No such image" in caught.value.stderr
    assert "registry" not in caught.value.stderr


@pytest.mark.parametrize("service", OWN)
def test_says_what_it_is(stack: Stack, service: str) -> None:
    label = '{{index .Config.Labels "org.opencontainers.image.%s"}}'
    image = image_of(stack, service)
    said = [docker("image", "inspect", "-f", label % name, image) for name in ("version", "licenses", "title")]
    assert said[:2] == [versions()["ECA_VERSION"], "Apache-2.0"]
    assert said[2].startswith("ECA Serve")
    assert docker("image", "inspect", "-f", "{{.Config.User}}", image) == "10001:10001"


def test_the_build_s_user_has_a_name(stack: Stack) -> None:
    """Torch-TensorRT asks for it when it is imported."""
    command = ["docker", "run", "--rm", "--network=none", image_of(stack, "build"), "python", "-c"]
    done = subprocess.run([*command, "import getpass, os, pwd; print(pwd.getpwuid(os.getuid())[0], getpass.getuser())"],
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.stdout.split() == ["eca", "eca"], done.stderr


def test_checkpoints_that_cannot_be_read_are_told_apart_from_none(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    run = ["docker", "run", "--rm", "--network=none", "-v", f"{folder}:/checkpoints:ro", image_of(stack, "build")]
    for mode, said in ((0o755, "there is no .pth"), (0o700, "cannot be read by user 10001")):
        folder.chmod(mode)
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert said in done.stderr


def build(context: Path, *arguments: str) -> str:
    """Builds the gateway's image from `context` and returns what BuildKit says of each step."""
    command = ["docker", "build", "--progress=plain", "--target=gateway", "-f", "deploy/docker/service.Dockerfile"]
    command += ["--build-arg", f"PYTHON_VERSION={versions()['PYTHON_VERSION']}", *arguments, "."]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(
        command, cwd=context, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What the images are made of, to be changed."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "demo")
    for name in ("service", "build", "deploy/docker"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def test_a_change_of_our_code_installs_no_package_again(stack: Stack, context: Path) -> None:
    """The longest step, pip's, comes from the cache."""
    with (context / "service" / "eca_service" / "app.py").open("a") as code:
        code.write("# changed\n")
    said = build(context, "-t", "eca-serve/gateway:changed")
    steps = dict(re.findall(r"^(#\d+) \[\S+ \d+/\d+\] (RUN.*)$", said, re.MULTILINE))
    installs = [number for number, step in steps.items() if "requirements.py requirements" in step]
    assert installs
    for number in installs:
        assert re.search(rf"^{number} CACHED$", said, re.MULTILINE), said[-3000:]
    layers = "{{json .RootFS.Layers}}"
    before, after = (
        json.loads(docker("image", "inspect", "-f", layers, image))
        for image in (image_of(stack, "gateway"), "eca-serve/gateway:changed")
    )
    docker("image", "rm", "eca-serve/gateway:changed")
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1], "only the last layer is another: our code"


@pytest.mark.large
def test_builds_agree(stack: Stack, context: Path) -> None:
    """Built once more without the cache, every file of ours and of our packages is the same."""
    build(context, "--no-cache", "-t", "eca-serve/gateway:again")
    listing = "cd /opt/eca && find . -type f ! -name '*.pyc' | LC_ALL=C sort | xargs -d '\n' sha256sum"
    images = (image_of(stack, "gateway"), "eca-serve/gateway:again")
    run = ("run", "--rm", "--network=none", "--entrypoint=sh")
    first, second = (docker(*run, image, "-c", listing).splitlines() for image in images)
    docker("image", "rm", "eca-serve/gateway:again")
    assert len(first) > 500
    assert sorted(set(first) ^ set(second)) == []
