"""How it grows: what one image costs as one thing grows, and what saturates first.

    python -m tests.load.growth [--axis size] [--json FILE]

Each point is a service of its own under closed load, and what is counted beside answers a second is processor time:
of the gateway, of Triton and its backend, per image. Processor time hardly depends on what else the machine does, so
these figures carry to another machine as a share of its core. Axes: the image's pixels, the network's classes, the
number of models that are loaded, the gateway's workers (where `eca-serve` has them), Triton endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import uvloop
from eca_build import initial
from eca_build.compile import compile_checkpoint
from eca_build.inputs import Options
from eca_service.contract import CONTRACT_FILE
from eca_service.settings import Settings
from eca_service.triton.supervisor import TritonServer
from tqdm import tqdm

from tests.integration.conftest import Service
from tests.load.environment import Written, busy, environment
from tests.load.generator import closed_loop
from tests.load.measure import end_on_sigterm, serving
from tests.load.photographs import made, photographs
from tests.load.processor import processor_s
from tests.load.protocols import Http

CALLERS = 8
AXES: dict[str, tuple[int, ...]] = {
    "size": (32, 224, 500, 1024, 2048, 4000),
    "classes": (10, 1000, 21841),
    "models": (1, 4, 16),
    "workers": (1, 2),
    "endpoints": (1, 2),
}
UNITS = {
    "size": "px longer side",
    "classes": "classes",
    "models": "model(s)",
    "workers": "worker(s)",
    "endpoints": "Triton(s)",
}

HEAD = (
    f"{'what grows':<24} {'images/s':>8} {'p99 ms':>7} {'gateway':>8} {'Triton':>8}  {'idle':>5}  most busy\n"
    f"{'':<24} {'':>8} {'':>7} {'ms/image':>8} {'ms/image':>8}  {'cores':>5}"
)


@dataclass(frozen=True)
class Point:
    """One value of one axis. Milliseconds of a core for an image, of the gateway and of Triton; `busy` are cores.

    `idle_cores` is what the service uses when nobody asks: its own checks.
    """

    axis: str
    value: int
    per_s: float
    p99_ms: float
    gateway_ms: float
    triton_ms: float
    idle_cores: float
    busy_gateway: float
    busy_triton: float
    failed: int

    def line(self) -> str:
        """For the table under HEAD."""
        return (
            f"{f'{self.value} {UNITS[self.axis]}':<24} {self.per_s:>8.0f} {self.p99_ms:>7.0f} {self.gateway_ms:>8.2f} "
            f"{self.triton_ms:>8.2f}  {self.idle_cores:>5.2f}  {self.saturated}"
        )

    @property
    def saturated(self) -> str:
        """What has most to do, in words."""
        cores = len(os.sched_getaffinity(0))
        most = "decoding and answering" if self.busy_gateway > self.busy_triton else "the engine"
        used = self.busy_gateway + self.busy_triton
        return f"{most}: {used:.1f} of {cores} cores busy" if used < 0.8 * cores else f"the cores, most with {most}"


def publish(models: Path, classes: int) -> Path:
    """A model, m0, of 32 pixels and so many classes, whose engine hardly costs; built once below `models`."""
    repository = models / "growth" / str(classes)
    weights = models / "growth" / f"{classes}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    if not weights.exists():
        initial.write(weights, "resnet14_cifar", "eca", classes)
    compile_checkpoint(Options(weights, repository, name="m0"), lambda step: None)
    return repository / "m0"


def copy(model: Path, repository: Path, name: str) -> None:
    """The same model under another name."""
    shutil.copytree(model, repository / name)
    for path in (repository / name / "config.pbtxt", *(repository / name).glob(f"*/{CONTRACT_FILE}")):
        path.write_text(path.read_text().replace('"m0"', f'"{name}"'))


def images_of(axis: str, value: int) -> list[bytes]:
    """What is sent at this point."""
    return made(8, ((value, value * 3 // 4),)) if axis == "size" else photographs()[0]


@contextlib.contextmanager
def service_of(axis: str, value: int, models: Path, scratch: Path) -> Iterator[tuple[Service, list[int]]]:
    """The service of this point, and the process ids of its Tritons."""
    repository, built = scratch / "repository", publish(models, value if axis == "classes" else 10)
    for index in range(value if axis == "models" else 1):
        copy(built, repository, f"m{index}")
    settings: dict[str, object] = {"workers": value} if axis == "workers" else {}
    with contextlib.ExitStack() as stack:
        tritons = []
        count = value if axis == "endpoints" else 1
        for index in range(count):
            triton = TritonServer(repository, 0, scratch / f"triton{index}.log")
            triton.start()
            stack.callback(triton.stop)
            tritons.append(triton)
        settings |= {"triton_url": ",".join(triton.address for triton in tritons)}
        service = stack.enter_context(serving(repository, scratch, settings, command="gateway"))
        yield service, [triton.pid for triton in tritons if triton.pid]


async def point(axis: str, value: int, service: Service, tritons: list[int], seconds: float) -> Point:
    """Idle for a second, warm, then loaded."""

    def used() -> tuple[float, float]:
        return processor_s(service.process.pid), sum(map(processor_s, tritons))

    images = images_of(axis, value)
    way = Http(service.url, images)
    try:
        await closed_loop(way, "m0", CALLERS, 1.0, len(images))
        before = used()
        await asyncio.sleep(6)  # long enough for one round of golden answers
        idle = sum(used()) - sum(before)
        before = used()
        block = await closed_loop(way, "m0", CALLERS, seconds, len(images))
        gateway, triton = (after - first for after, first in zip(used(), before, strict=True))
    finally:
        await way.close()
    answers = len(block.latencies_s)
    if not block.latencies_s:
        raise click.ClickException(f"{axis} {value}: none of {block.sent} requests was answered: {block.failures}")
    return Point(
        *(axis, value, block.per_s, 1000 * float(np.percentile(block.latencies_s, 99))),
        *(1000 * gateway / answers, 1000 * triton / answers, idle / 6),
        *(gateway / block.seconds, triton / block.seconds, sum(block.failures.values())),
    )


def available(axis: str) -> str:
    """Why an axis cannot be measured here; empty where it can."""
    if axis == "workers" and "workers" not in Settings.model_fields:
        return "eca-serve has no --workers here"
    return ""


@click.command(context_settings={"show_default": True})
@click.option(
    "--axis", "axes", multiple=True, type=click.Choice(list(AXES)), help="Only this one; may be given several times."
)
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=4.0, help="Length of the load at each point.")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=Path(".cache/bench"),
    help="Folder for the models built for it.",
)
@click.option("--json", "file", type=Written(), help="Write all figures there.")
def main(axes: tuple[str, ...], seconds: float, models: Path, file: Path | None) -> None:
    """Prints a table: one line a point."""
    end_on_sigterm()
    wanted = [axis for axis in (axes or tuple(AXES)) if not available(axis)]
    for axis in axes or tuple(AXES):
        if reason := available(axis):
            click.echo(f"{axis}: not measured, {reason}", err=True)
    facts, points = environment(photographs()[1]), []
    click.echo("\n".join([*(f"{key}: {text}" for key, text in facts.items()), busy(facts)]))
    click.echo(HEAD)
    work = [(axis, value) for axis in wanted for value in AXES[axis]]
    bar = tqdm(work, desc="measuring", unit="point", disable=None)
    for axis, value in bar:
        with tempfile.TemporaryDirectory(prefix="eca-growth-") as folder:
            scratch = Path(folder)
            with service_of(axis, value, models, scratch) as (service, tritons):
                points.append(uvloop.run(point(axis, value, service, tritons, seconds)))
        bar.write(points[-1].line())
    if file:
        file.write_text(json.dumps({"environment": facts, "points": [asdict(one) for one in points]}))
    sys.exit(1 if any(one.failed for one in points) else 0)


if __name__ == "__main__":
    main()
