"""The CPU stack as docker-compose runs it, under a project name and on ports of its own."""

from __future__ import annotations

import functools
import http.server
import ipaddress
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from eca_service.triton.server import free_port

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "deploy/compose.cpu.yml", "tests/deploy/compose.yml")
WHEELS_PORT = 38_999
PORTS = ("ECA_HTTP_PORT", "ECA_GRPC_PORT", "ECA_BALANCED_HTTP_PORT", "ECA_BALANCED_GRPC_PORT", "PROMETHEUS_PORT")
MODEL = "resnet14-eca"
SERVICES = ("build", "triton", "gateway", "prometheus")


def versions() -> dict[str, str]:
    """What .env says."""
    lines = (ROOT / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def docker(*arguments: str, timeout_s: float = 60) -> str:
    """What a docker command prints; AssertionError with its stderr where it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def logs(container: str) -> str:
    """What a container has said, on both of its streams."""
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def missing(cold: bool) -> str | None:
    """Why the stack cannot run here, or None; `cold`: even where the images must be built from nothing, in minutes."""
    try:
        docker("info")
    except (OSError, AssertionError, subprocess.TimeoutExpired):
        return "no Docker engine answers"
    if compose_command() is None:
        return "neither `docker compose` nor docker-compose is installed"
    base = f"python:{versions()['PYTHON_VERSION']}-slim"
    try:
        docker("image", "inspect", base)
    except AssertionError:
        return f"the base image is not at hand; `docker pull {base}` fetches it"
    if not cold and not docker("image", "ls", "-q", f"eca-serve/build:{versions()['ECA_VERSION']}-cpu"):
        return "the images were never built here; `make test-deploy` does"
    return None


@functools.cache
def compose_command() -> tuple[str, ...] | None:
    """Compose v2 where docker has it, else docker-compose."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


@contextmanager
def torch_wheels() -> Iterator[dict[str, str]]:
    """The setting that lets the build image take torch from a folder of wheels that pip here is pointed to, if any.

    The folder is served on the bridge's address for as long as the images are built, at a fixed port: the address is
    part of what the layer is cached by.
    """
    folders = [Path(name) for name in os.environ.get("PIP_FIND_LINKS", "").split()]
    folder = next((folder for folder in folders if any(folder.glob("torch-*+cpu-*.whl"))), None)
    if folder is None:
        yield {}
        return
    subnet = docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Subnet}}")
    host = str(next(ipaddress.ip_network(subnet).hosts()))
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer((host, WHEELS_PORT), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {"TORCH_LINKS": f"http://{host}:{server.server_port}/ --trusted-host {host}"}
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Stack:
    """`compose` runs its commands; `url`, `grpc` and `prometheus` are addresses on this host."""

    def __init__(self) -> None:
        self.project = f"eca-test-{os.getpid()}"
        self.ports = {name: free_port() for name in PORTS}
        self.url = f"http://127.0.0.1:{self.ports['ECA_HTTP_PORT']}"
        self.grpc = f"127.0.0.1:{self.ports['ECA_GRPC_PORT']}"
        self.balanced = f"http://127.0.0.1:{self.ports['ECA_BALANCED_HTTP_PORT']}"
        self.balanced_grpc = f"127.0.0.1:{self.ports['ECA_BALANCED_GRPC_PORT']}"
        self.prometheus = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}"

    def compose(self, *arguments: str, timeout_s: float = 120, **environment: str) -> str:
        """Runs a compose command on the project; AssertionError with its last lines where it fails."""
        done = subprocess.run(
            [*(compose_command() or ()), *arguments],
            env={**self.environment(), **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"compose {' '.join(arguments)}: {(done.stdout + done.stderr)[-4000:]}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        """What makes a compose command one on this project."""
        return {
            **os.environ,
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "COMPOSE_FILE": ":".join(str(ROOT / file) for file in FILES),
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": "balanced",
            "ECA_BIND": "127.0.0.1",
            "ECA_DEFAULT_MODEL": MODEL,
            "ECA_DRAIN_DELAY_MS": "4000",  # these callers and the stack share few cores
            **{name: str(port) for name, port in self.ports.items()},
        }

    def upgrade(self, **environment: str) -> None:
        """Runs upgrade.sh on the project; it finds the compose command by itself."""
        done = subprocess.run(
            [str(ROOT / "deploy" / "upgrade.sh")],
            env={**self.environment(), **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def containers(self, service: str) -> list[str]:
        """The ids of the service's containers, running or not."""
        label = f"label=com.docker.compose.project={self.project}"
        return docker("ps", "-aq", "--filter", label, "--filter", f"label=com.docker.compose.service={service}").split()

    def container(self, service: str) -> str:
        """The id of the service's one container."""
        (one,) = self.containers(service)
        return one

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of the service's container: Status, ExitCode, Health, ..."""
        found: dict[str, Any] = json.loads(docker("inspect", "-f", "{{json .State}}", self.container(service)))
        return found

    def await_ready(self, timeout_s: float = 60) -> float:
        """Seconds until the gateway said that every model is golden; AssertionError with the logs otherwise."""
        began = time.monotonic()
        answer = "nothing"
        while (spent := time.monotonic() - began) < timeout_s:
            try:
                response = httpx.get(self.url + "/readyz", timeout=5)
                answer = response.text
                if response.status_code == 200:
                    return spent
            except httpx.HTTPError as error:
                answer = repr(error)
            time.sleep(0.2)
        logs = self.compose("logs", "--tail=40", *SERVICES)
        raise AssertionError(f"not ready after {timeout_s} s: {answer}\n{logs}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that Prometheus answers."""
        response = httpx.get(self.prometheus + "/api/v1/query", params={"query": expression}, timeout=10)
        found: list[dict[str, Any]] = response.json()["data"]["result"]
        return found

    def leftovers(self) -> str:
        """Containers, networks and volumes of the project."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "-aq"), ("network", "ls", "-q"), ("volume", "ls", "-q"))
        return " ".join(docker(*kind, "--filter", label) for kind in kinds).strip()

    def down(self) -> None:
        """Removes everything of the project but the images."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "30")
