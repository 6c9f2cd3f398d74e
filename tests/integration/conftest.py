"""A model repository built from the demo networks, and the whole service in front of it."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DEMO = sorted((ROOT / "build" / "demo").glob("*.safetensors"))
# Each request on a connection of its own, as with httpx.get, but that reads whom to trust anew: 35 ms
FRESH = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
MODEL, OTHER = "resnet14-eca", "resnet14-se"
STRICT_HEAD_S = 1.2


def run(module: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command line of ours, in a process of its own; `environment` is added to this one's."""
    command = [sys.executable, "-c", f"from {module}.cli import main; main()", *map(str, arguments)]
    env = os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=env)


def build(repository: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Builds the demo networks of these names, or all, as `make models PRECISION=fp32 RUNTIME=onnxruntime` does: the
    same each time.
    """
    demo = ROOT / "build" / "demo"
    chosen = [path for path in DEMO if not names or path.stem in names]
    return run(
        "eca_build", "compile", *chosen, "--repository", repository, "--labels", demo / "labels.txt",
        "--images", demo / "images", "--expose-gates",
    )  # fmt: skip


@pytest.fixture(scope="session")
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All demo networks, built: once, by whichever process of the tests comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "demo"
    built = folder.with_name("demo is built")
    assert DEMO
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():  # else it would be looked through again, for seconds
            done = build(folder)
            assert done.returncode == 0, done.stderr
            built.touch()
    return folder


@pytest.fixture(scope="session")
def repository(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of them, which Triton has sooner than all."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    for name in (MODEL, OTHER):
        shutil.copytree(demo / name, folder / name)
    return folder


@dataclass
class Service:
    """A running `eca-serve up`. Callers trust `ca` where it speaks TLS, and send `key`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    triton_port: int
    grpc_port: int
    ca: Path | None = None
    key: str = ""

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """For https."""
        return ssl.create_default_context(cafile=self.ca)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **given: Any) -> httpx.Response:
        """What its HTTP port answers, on a connection of its own; with the key unless `headers` have another."""
        own = {"authorization": f"Bearer {self.key}"} if self.key else {}
        sent = own | (headers or {})
        return httpx.request(method, self.url + path, headers=sent, timeout=60, verify=self.trust, **given)

    def channel(self) -> grpc.Channel:
        """To its gRPC port."""
        options = [("grpc.max_send_message_length", -1)]
        if self.ca:
            return grpc.secure_channel(
                f"localhost:{self.grpc_port}", grpc.ssl_channel_credentials(self.ca.read_bytes()), options
            )
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What gRPC calls carry."""
        return [("authorization", f"Bearer {self.key}")] if self.key else []

    def children(self) -> list[int]:
        """All processes below it."""
        found, wanted = [], [self.process.pid]
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        while wanted:
            parent = wanted.pop()
            below = [pid for pid, its in parents.items() if its == parent]
            found += below
            wanted += below
        return found

    @property
    def memory_kib(self) -> int:
        """What the gateway's process has of the memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def await_ready(self, route: str = "/readyz", timeout_s: float = 60) -> None:
        """Returns once `route` says yes; fails with the log where it does not in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                if self.ask("GET", route).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())


def free_ports() -> tuple[int, int, int]:
    """Ports for the gateway's HTTP and gRPC and for Triton's gRPC."""
    return free_port(), free_port(), free_port()


def environment(repository: Path, folder: Path, ports: tuple[int, int, int], **settings: object) -> dict[str, str]:
    """This process's environment with ECA_... `settings`, given in lower case, and none besides."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")}
    given: dict[str, object] = {"http_port": ports[0], "grpc_port": ports[1], "triton_grpc_port": ports[2]}
    given |= {"repository": repository, "triton_log": folder / "triton.log"}
    given |= {"default_model": MODEL} if (repository / MODEL).exists() else {}
    given |= settings
    return kept | {f"ECA_{name.upper()}": str(value) for name, value in given.items()}


def start(
    repository: Path,
    folder: Path,
    command: str = "up",
    *,
    own_session: bool = False,
    before: str = "",
    **settings: object,
) -> Service:
    """Starts `eca-serve COMMAND` on free ports, with ECA_... settings in lower case; it may not be ready yet.

    The process executes the Python of `before` first.

    In a session of its own Linux shares the cores between it and us, where there are too few for all (autogroup, see
    sched(7)); else we are one beside its threads.
    """
    ports, log = free_ports(), folder / "service.log"
    port, grpc_port, triton_port = ports
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom eca_service.cli import main; main()", command],
            env=environment(repository, folder, ports, **settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
        )
    url = f"https://localhost:{port}" if "tls_cert" in settings else f"http://127.0.0.1:{port}"
    return Service(process, url, log, triton_port, grpc_port)


def golden_png(repository: Path, model: str, index: int = 0) -> bytes:
    """A golden image as a PNG: it must get the build's own answer."""
    out = io.BytesIO()
    Image.fromarray(np.load(repository / model / "1" / "golden.npy")[index]).save(out, "PNG")
    return out.getvalue()


def slow_image() -> bytes:
    """Takes long to decode and little to send."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((6000, 6000, 3), np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def triton_of(service: Service) -> int:
    """The Triton below it."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in service.children()}
    return next(pid for pid, command in commands.items() if command.endswith(b"/tritonserver"))


def alive(pids: list[int]) -> list[int]:
    """Those of them that run."""
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and _running(pid)]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def ending(service: Service) -> Iterator[None]:
    """Begins when it is ready, and ends it afterwards."""
    try:
        service.await_ready()
        yield
    finally:
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(40) == 0, service.log.read_text()


@contextmanager
def ready(repository: Path, folder: Path, **settings: Any) -> Iterator[Service]:
    """The whole service as `start` starts it, ready, and ended afterwards."""
    running = start(repository, folder, **settings)
    with ending(running):
        yield running


@pytest.fixture(scope="module")
def service(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service, for the tests of one module."""
    with ready(repository, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One `chromium.Browser` for all tests of one module, where one can be had."""
    from tests.integration.chromium import browser, missing

    if reason := missing():
        pytest.skip(reason)
    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service with all networks, for all modules that leave it as they found it: their `service` is it."""
    with ready(demo, tmp_path_factory.mktemp("undisturbed")) as running:
        yield running


@pytest.fixture(scope="module")
def strict(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits a second for a body and for the next request, and longer for a head that has begun."""
    folder = tmp_path_factory.mktemp("strict")
    with ready(
        repository, folder, head_timeout_ms=1000 * STRICT_HEAD_S, body_timeout_ms=1000, keep_alive_ms=1000
    ) as running:
        yield running
