"""Runs a preset: per backbone a service of its own, its variants in random blocks, round after round."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvloop
from eca_build.networks.attention import Kind
from eca_service.contract import Preprocessing, read

from tests.integration.conftest import Service, start
from tests.load.arrivals import planned
from tests.load.generator import Block, closed_loop, open_loop
from tests.load.matrix import Level, Preset, Variant
from tests.load.processor import processor_s
from tests.load.protocols import GatewayGrpc, Http, TritonGrpc, Way

WARM_UP_S = 0.7


@dataclass
class Cell:
    """All rounds of one variant at one level; each list has one entry a round. Latencies are in milliseconds.

    `processor_ms` is what all of the service's processes used of a core for one answer, which hardly depends on what
    else the machine does.
    """

    backbone: str
    variant: str
    attention: Kind
    precision: str
    graph: str
    level: str
    offered_per_s: float | None
    per_s: list[float] = field(default_factory=list)
    latencies_ms: list[list[float]] = field(default_factory=list)
    late_p99_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)
    sent: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, block: Block, processor: float) -> None:
        """Takes one round's block, and the processor seconds that the service used in it."""
        self.processor_ms.append(round(1000 * processor / max(1, len(block.latencies_s)), 3))
        self.per_s.append(block.per_s)
        self.latencies_ms.append([round(1000 * value, 3) for value in block.latencies_s])
        late_p99_s = float(np.percentile(block.late_s, 99)) if block.late_s else 0.0
        self.late_p99_ms.append(round(1000 * late_p99_s, 3))
        self.stages_ms.append({name: sum(values) / len(values) for name, values in block.stages.items()})
        self.sent += block.sent
        for code, count in block.failures.items():
            self.failures[code] = self.failures.get(code, 0) + count

    def asdict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does: with all that it started, and without temporary files.

    An exception of its own would be lost where it came up in a callback of the event loop. What a script starts in the
    background ignores SIGINT, until here.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


class NotServedError(click.ClickException):
    """A service that did not become ready, or does not answer; its text is a sentence without the full stop."""


@contextmanager
def serving(
    repository: Path, folder: Path, settings: dict[str, object] | None = None, command: str = "up"
) -> Iterator[Service]:
    """`eca-serve COMMAND` on free loopback ports, ready; it ends with the block, and what it left.

    It has its own session, as any service has, and so the cores beside the load and not among it. Raises
    NotServedError where it does not become ready.
    """
    told: Any = {"log_level": "warning"} | (settings or {})
    service = start(repository, folder, command, own_session=True, **told)
    try:
        try:
            service.await_ready(timeout_s=180)
        except AssertionError as error:
            log = str(error).strip().splitlines() or ["its log is empty"]
            raise NotServedError(f"eca-serve {command} of {repository} did not become ready: {log[-1]}") from None
        yield service
    finally:
        service.process.send_signal(signal.SIGTERM)
        try:
            service.process.wait(40)
        except Exception:
            service.process.kill()
            raise


def ways(service: Service, images: list[bytes], recipe: Preprocessing, connections: int = 2) -> dict[str, Way]:
    """Every way into a service, by the name that levels use; inside a running event loop."""
    return {
        "http": Http(service.url, images),
        "grpc": GatewayGrpc(f"127.0.0.1:{service.grpc_port}", images, connections),
        "triton": TritonGrpc(f"127.0.0.1:{service.triton_port}", images, recipe),
    }


def blocks(preset: Preset, variants: list[Variant], seed: int) -> list[tuple[int, Level, Variant]]:
    """All blocks in their order: levels at random in each round, and at each the variants at random, side by side."""
    chance, order = random.Random(seed), []
    for turn in range(preset.rounds):
        for level in chance.sample(preset.levels, len(preset.levels)):
            order += [(turn, level, variant) for variant in chance.sample(variants, len(variants))]
    return order


async def measure(
    preset: Preset,
    variants: list[Variant],
    service: Service,
    recipe: Preprocessing,
    images: list[bytes],
    seed: int,
    step: Callable[[str], None],
    keep: Callable[[list[Cell]], None],
    offered: Mapping[tuple[str, str], float],
) -> list[Cell]:
    """The cells of one backbone's variants, which share `recipe`; `step` hears of each block when it ends, `keep` of
    all cells after each round.

    Open load has the arrivals a second that `offered` has for its backbone and level, else its share of what the plain
    network does. Raises NotServedError where that answers nothing before them, or the service ends.
    """
    roads = ways(service, images, recipe)
    cells: dict[tuple[Level, Variant], Cell] = {}
    try:
        for road in roads.values():  # a connection's first request takes many times as long as the others
            for variant in variants:
                await closed_loop(road, variant.name, 4, WARM_UP_S, len(images))
        plain = next((v for v in variants if v.attention == "none"), variants[0])
        first = await closed_loop(roads["http"], plain.name, 8, 2 * preset.seconds, len(images))
        if not (capacity := first.per_s):
            raise NotServedError(f"{plain.name} answered none of {first.sent} requests: {first.failures}")
        order = blocks(preset, variants, seed)
        for number, (turn, level, variant) in enumerate(order, 1):
            rate = offered.get((variant.backbone, level.name), level.share * capacity)
            key = (level, variant)
            if key not in cells:
                cells[key] = Cell(
                    variant.backbone, variant.name, variant.attention, variant.precision, variant.graph, level.name,
                    rate or None,
                )  # fmt: skip
            chance = seed + 1000 * turn
            way, used = roads[level.way], processor_s(service.process.pid)
            if level.callers:
                block = await closed_loop(
                    way, variant.name, level.callers, preset.seconds, len(images), preset.most, chance
                )
            else:
                starts = planned(level.process, rate, 2 * preset.seconds, preset.most, chance)
                block = await open_loop(way, variant.name, starts, len(images), chance)
            if (status := service.process.poll()) is not None:
                raise NotServedError(f"the service ended with status {status} while {variant.name} was measured")
            cells[key].add(block, processor_s(service.process.pid) - used)
            step(f"{variant.name}, {level.name}")
            if not number % (len(order) // preset.rounds):
                keep(list(cells.values()))
    finally:
        for way in roads.values():
            await way.close()
    return list(cells.values())


def run(
    preset: Preset, variants: list[Variant], repository: Path, images: list[bytes], folder: Path, seed: int,
    step: Callable[[str], None], keep: Callable[[list[Cell]], None], offered: Mapping[tuple[str, str], float],
) -> list[Cell]:  # fmt: skip
    """Starts a service of one backbone's `variants` and nothing else of `repository`, measures it, ends it.

    `folder` is for what is written meanwhile; `keep` hears of all cells after each round. Raises NotServedError.
    """
    recipe = read(next((repository / variants[0].name).glob("[0-9]*"))).preprocessing
    served = folder / "repository"
    served.mkdir()
    for variant in variants:  # what earlier runs built would be loaded and asked for golden answers too
        (served / variant.name).symlink_to((repository / variant.name).absolute())
    with serving(served, folder) as service:
        return uvloop.run(measure(preset, variants, service, recipe, images, seed, step, keep, offered))
