"""What the peer test starts: set-ups of our service, and the plain one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
from eca_service.contract import CONTRACT_FILE
from eca_service.settings import Settings
from eca_service.triton.server import free_port

TUNED = ("instances", "threads", "max_batch", "preferred", "precision", "runtime", "backend", "scheduler")
NUMBERS = ("instances", "threads", "max_batch")


def setup_of(text: str) -> dict[str, str]:
    """`instances=2,threads=1` as a dict. Raises click.BadParameter."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not found or not value for _, found, value in pairs):
        raise click.BadParameter(f"{text!r} is not name=value,name=value")
    setup = {name.strip(): value.strip() for name, _, value in pairs}
    for name, value in setup.items():
        if name not in {*TUNED, *Settings.model_fields}:
            raise click.BadParameter(f"{name} is no setting; there are {', '.join(TUNED)} and those of `eca-serve up`")
        if name in NUMBERS and not value.isdecimal():
            raise click.BadParameter(f"{name} is {value}, which is no number")
    return setup


def tuned(source: Path, model: str, target: Path, setup: dict[str, str]) -> None:
    """A copy of a published model with the set-up's instances and batches in its configuration and contract."""
    shutil.copytree(source / model, target / model)
    config = target / model / "config.pbtxt"
    text = config.read_text()
    if "instances" in setup:
        text = re.sub(r"count: \d+", f"count: {int(setup['instances'])}", text)
    if "max_batch" in setup:
        text = re.sub(r"max_batch_size: \d+", f"max_batch_size: {int(setup['max_batch'])}", text)
        for path in (target / model).glob(f"*/{CONTRACT_FILE}"):
            contract = json.loads(path.read_text()) | {"max_batch": int(setup["max_batch"])}
            path.write_text(json.dumps(contract))
    if "preferred" in setup:
        text = re.sub(
            r"dynamic_batching .*",
            f"dynamic_batching {{ preferred_batch_size: [ {setup['preferred']} ] }}",
            text,
        )
    config.write_text(text)


@contextlib.contextmanager
def surroundings(setup: dict[str, str]) -> Iterator[None]:
    """What is started meanwhile has the set-up's backend of Triton and its class of scheduling."""
    for name, only in (("backend", "python"), ("scheduler", "rr")):
        if setup.get(name, only) != only:
            raise click.BadParameter(f"{name} is {setup[name]}; it can be {only}")
    compiler = os.environ.get("CXX")
    if "backend" in setup:
        os.environ["CXX"] = ""  # without a compiler there is no other
    if "scheduler" in setup:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except PermissionError:
            raise click.ClickException("scheduler=rr needs root") from None
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.environ.pop("CXX", None)
        if compiler is not None:
            os.environ["CXX"] = compiler


@contextlib.contextmanager
def plain_service(model: Path, labels: Path, workers: int) -> Iterator[tuple[str, int]]:
    """The plain service's URL and process, once it answers; it ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "tests.load.peer_service", str(model), str(labels)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--workers", str(workers)], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/docs").status_code == 200:
                    break
            time.sleep(0.2)
        else:
            raise click.ClickException("the plain FastAPI service did not start")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
