"""Measures what an image costs the gateway on this machine: python -m deploy.capacity PHOTOGRAPH...

Two parts, both in core-seconds, so that other work on the machine hardly matters: decoding and resizing to 256 / 224,
in this process; and all else that the gateway does for a request, in a running service whose model takes tiny images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import httpx
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import decode
from eca_service.triton.server import free_port

from deploy import options

ROOT = Path(__file__).parents[1]
TINY = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
REQUESTS = 400


def decoding_s(photographs: Sequence[Path], seconds: float = 5.0) -> float:
    """Core-seconds for one photograph, as the service decodes by default, over whole rounds for at least `seconds`."""
    recipe, contents = Preprocessing(), [path.read_bytes() for path in photographs]
    images, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for content in contents:
            decode(content, recipe, 50_000_000, fast=True)
        images += len(contents)
    return (time.process_time() - began) / images


def core_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request_s(repository: Path) -> float:
    """The gateway's core-seconds for a request with one tiny image, by one caller on a connection that is kept."""
    port = free_port()
    # what is set for another service, such as workers, whose time would not be counted, is not for this one
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")} | {
        "ECA_HTTP_PORT": str(port),
        "ECA_GRPC_PORT": str(free_port()),
        "ECA_TRITON_GRPC_PORT": str(free_port()),
        "ECA_REPOSITORY": str(repository),
        "ECA_LOG_LEVEL": "warning",
    }
    with tempfile.TemporaryDirectory() as folder:
        environment["ECA_TRITON_LOG"] = f"{folder}/triton.log"
        command = [sys.executable, "-c", "from eca_service.cli import main; main()", "up"]
        service = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                await_ready(client, service)
                image = TINY.read_bytes()
                for _ in range(50):
                    client.post("/v1/classify", content=image).raise_for_status()
                began = core_seconds(service.pid)
                for _ in range(REQUESTS):
                    client.post("/v1/classify", content=image).raise_for_status()
                return (core_seconds(service.pid) - began) / REQUESTS
        finally:
            service.terminate()
            service.wait(30)


def await_ready(client: httpx.Client, service: subprocess.Popen[bytes]) -> None:
    """Returns once the service is ready; exits with a sentence where it is not within a minute."""
    for _ in range(600):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if service.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit("the service did not become ready; `eca-serve doctor` says why")


@click.command()
@click.argument(
    "photographs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
)
@options.repository("Model repository of the service that is measured.")
def main(photographs: tuple[Path, ...], repository: Path) -> None:
    """Measures the core time that an image costs the gateway on this machine.

    PHOTOGRAPHS are image files of the size that you expect. deploy/capacity.md says what follows from the figures.
    """
    kilobytes = sum(path.stat().st_size for path in photographs) / len(photographs) / 1000
    try:
        decoding = decoding_s(photographs)
    except ServiceError as error:
        raise click.UsageError(f"one of the photographs cannot be decoded: {error.detail}") from None
    request = request_s(repository)
    click.echo(f"photographs: {len(photographs)}, {kilobytes:.0f} KB in the mean")
    click.echo(f"decoding and resizing: {1000 * decoding:.2f} ms of a core")
    click.echo(f"all else of a request: {1000 * request:.2f} ms of a core")
    click.echo(f"images/s of a core:    {1 / (decoding + request):.0f}")


if __name__ == "__main__":
    main()
