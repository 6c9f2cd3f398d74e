"""Our service beside a plain FastAPI service and beside no service at all, on one network, in turns.

    python -m tests.load.peer
    python -m tests.load.peer --ours instances=1,threads=2 --ours instances=2,threads=1,max_batch=2

Each `--ours` is one set-up of our service: `instances` of the engine in Triton, `threads` of each, `max_batch`, the
dynamic batcher's `preferred` size, `precision` and `runtime` of the build, `backend=python` instead of the compiled
one, `scheduler=rr` for the real-time class, whose threads the kernel spreads over the cores at once, and any setting of
`eca-serve up` in lower case, such as `decode_threads=2`. All contenders run at once and take turns, in another order in
each round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
import httpx
import numpy as np
import uvloop
from eca_build.errors import BuildError
from eca_build.networks.attention import Kind
from eca_build.targets import RUNTIMES
from eca_service.contract import CONTRACT_FILE, Preprocessing, read
from eca_service.triton.server import free_port
from tqdm import tqdm

from tests.load.environment import busy, environment
from tests.load.generator import Block, closed_loop
from tests.load.in_process import Loops, Order
from tests.load.intervals import Estimate, mean, over_rounds, percentile, ratio
from tests.load.matrix import BACKBONES, DEMO_WEIGHTS, Variant, build
from tests.load.measure import end_on_sigterm, serving
from tests.load.photographs import photographs
from tests.load.processor import processor_s, waited_s, waits
from tests.load.protocols import Http, TritonGrpc, Way

PEER, LIMIT, ALONE = "plain FastAPI", "no server, every core", "no server, one image"
TUNED = ("instances", "threads", "max_batch", "preferred", "precision", "runtime", "backend", "scheduler")


@dataclass(frozen=True)
class Contender:
    """A way to a service, the model to name there, and the process above all of its processes."""

    way: Way
    model: str
    pid: int


@dataclass
class Figures:
    """One contender at one number of clients: an entry a round."""

    per_s: list[float] = field(default_factory=list)
    latencies_ms: list[list[float]] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)  # of all its processes, for an image
    waited_ms: list[float] = field(default_factory=list)  # that their threads had no core for it
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, per_s: float, latencies_s: list[float], processor_s_each: float) -> None:
        """Takes one round."""
        self.processor_ms.append(1000 * processor_s_each)
        self.per_s.append(per_s)
        self.latencies_ms.append([1000 * value for value in latencies_s])

    def take(self, block: Block, processor: float, waited: float) -> None:
        """Takes one round's block, and the seconds that a core was used in it and waited for."""
        answered = max(1, len(block.latencies_s))
        self.add(block.per_s, block.latencies_s, processor / answered)
        self.waited_ms.append(1000 * waited / answered)
        for code, count in block.failures.items():
            self.failures[code] = self.failures.get(code, 0) + count


def setup_of(text: str) -> dict[str, str]:
    """`instances=2,threads=1` as a dict. Raises click.BadParameter."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not found or not value for _, found, value in pairs):
        raise click.BadParameter(f"{text!r} is not name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


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
            r"dynamic_batching \{[^}]*\}",
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
def peer(model: Path, labels: Path, workers: int) -> Iterator[tuple[str, int]]:
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


async def rounds(
    contenders: dict[str, Contender],
    engines: dict[str, Contender],
    loops: tuple[Loops, Loops],
    clients: tuple[int, ...],
    count: int,
    seconds: float,
    images: int,
    bar: tqdm[NoReturn],
) -> dict[tuple[str, int], Figures]:
    """All figures by (contender, clients). `loops` are on every core, and one on all of them."""
    every, one = loops
    found: dict[tuple[str, int], Figures] = {}
    chance = random.Random(1)

    async def limit(name: str, level: int) -> None:
        work = {
            LIMIT: (every, Order(seconds)),
            ALONE: (one, Order(seconds)),
            "engine in process": (every, Order(seconds, decode=False)),
        }
        which, order = work[name]
        found.setdefault((name, level), Figures()).add(*await asyncio.to_thread(which.run, order))

    for each in (*contenders.values(), *engines.values()):
        await closed_loop(each.way, each.model, 4, 1.0, images)
    for turn in range(count):
        work = [(name, level) for name in contenders for level in clients]
        work += [(name, 0) for name in (LIMIT, ALONE, "engine in process")] + [(name, 8) for name in engines]
        for name, level in chance.sample(work, len(work)):
            if not level:
                await limit(name, 0)
            else:
                each = contenders[name] if name in contenders else engines[name]
                used, before = processor_s(each.pid), waits(each.pid)
                block = await closed_loop(each.way, each.model, level, seconds, images, seed=turn)
                used, waited = processor_s(each.pid) - used, waited_s(before, waits(each.pid))
                found.setdefault((name, level), Figures()).take(block, used, waited)
            bar.set_postfix_str(name)
            bar.update()
    for each in (*contenders.values(), *engines.values()):
        await each.way.close()
    return found


def table(found: dict[tuple[str, int], Figures], ours: list[str], clients: tuple[int, ...]) -> list[str]:
    """The lines to print."""
    limit, lone = found[LIMIT, 0], found[ALONE, 0]
    lone_ms = over_rounds(lone.latencies_ms, percentile(50))
    lines = [
        f"{LIMIT}: {_rate(limit).text(1)} images/s; {ALONE}: {lone_ms.text(1)} ms; "
        f"engine alone in process: {_rate(found['engine in process', 0]).text(1)} images/s",
        f"Processor time of an image in process: {np.mean(limit.processor_ms):.1f} ms, "
        f"of its engine alone {np.mean(found['engine in process', 0].processor_ms):.1f} ms",
        "",
        f"{'service':<44} {'clients':>7} {'images/s':>9} {'of limit':>8} {'p50 ms':>7} {'p99 ms':>7} "
        f"{'core ms':>8} {'wait ms':>8}  {'x the peer (95 %)':<20} failed",
    ]
    for name in (PEER, *ours):
        for level in clients:
            one, base = found[name, level], found[PEER, level]
            every = np.concatenate(one.latencies_ms) if any(one.latencies_ms) else np.array([np.nan])
            share = ratio(one.per_s, limit.per_s).value
            against = "" if name == PEER else ratio(one.per_s, base.per_s).text(2)
            lines.append(
                f"{name:<44} {level:>7} {_rate(one).value:>9.1f} {share:>8.2f} {np.percentile(every, 50):>7.1f} "
                f"{np.percentile(every, 99):>7.1f} {np.mean(one.processor_ms):>8.1f} "
                f"{np.mean(one.waited_ms):>8.1f}  {against:<20} "
                f"{sum(one.failures.values())}"
            )
    lines += ["", "Asked for:"]
    for name in ours:
        lines += [f"  {name}", *(f"    {line}" for line in verdicts(found, name, clients, lone_ms))]
    return lines


def verdicts(
    found: dict[tuple[str, int], Figures], name: str, clients: tuple[int, ...], lone_ms: Estimate
) -> list[str]:
    """What is asked of our service, and whether it holds."""
    lines = []
    for level in clients:
        one, base = found[name, level], found[PEER, level]
        if level == 1:
            ours = over_rounds(one.latencies_ms, percentile(50))
            lines.append(
                _verdict("one client's p50 / one image in process", ours.value / lone_ms.value, 1.1, below=True)
            )
            continue
        lines.append(_verdict(f"throughput at {level} clients / peer's", ratio(one.per_s, base.per_s).value, 1.0))
        if level == max(clients):
            p99 = [over_rounds(each.latencies_ms, percentile(99)).value for each in (one, base)]
            lines.append(_verdict(f"p99 at {level} clients / peer's", p99[0] / p99[1], 0.5, below=True))
    engine = found.get((f"{name}: Triton directly", 8))
    if engine:
        share = ratio(engine.per_s, found["engine in process", 0].per_s).value
        lines.append(_verdict("Triton directly, 8 at once / engine in process", share, 0.95))
    return lines


def _verdict(what: str, value: float, bound: float, below: bool = False) -> str:
    holds = value <= bound if below else value >= bound
    return f"{'yes' if holds else 'NO '}  {what}: {value:.2f} ({'at most' if below else 'at least'} {bound:g})"


def _rate(figures: Figures) -> Estimate:
    return over_rounds([[one] for one in figures.per_s], mean)


@click.command(context_settings={"show_default": True})
@click.option("--ours", multiple=True, default=("",), help="A set-up of ours, name=value,name=value; several times.")
@click.option(
    "--backbone", type=click.Choice([name for name in BACKBONES if name not in DEMO_WEIGHTS]), default="mobilenetv2"
)
@click.option("--attention", type=click.Choice(get_args(Kind)), default="eca")
@click.option("--clients", type=click.IntRange(1, 1024), multiple=True, default=(1, 8, 32))
@click.option("--rounds", "count", type=click.IntRange(1, 100), default=5)
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3.0, help="Of each measurement.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, help="Of the plain service.")
@click.option("--images", "folder", type=click.Path(path_type=Path, exists=True), help="A folder of JPEGs to send.")
@click.option("--models", type=click.Path(path_type=Path), default=Path(".cache/bench"), help="What is built for it.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures there.")
def main(
    ours: tuple[str, ...],
    backbone: str,
    attention: Kind,
    clients: tuple[int, ...],
    count: int,
    seconds: float,
    workers: int,
    folder: Path | None,
    models: Path,
    file: Path | None,
) -> None:
    """Prints images/s and latency of each contender, and the ratios that are asked of ours."""
    if len(set(ours)) < len(ours):
        raise click.UsageError("two --ours are the same: their figures could not be told apart")
    end_on_sigterm()
    images, source = photographs(folder)
    facts = environment(source)
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        engines: dict[str, Contender] = {}
        names, addresses = [], []
        for text in ours:
            setup = setup_of(text)
            if setup.get("runtime", "auto") not in (*RUNTIMES, "auto"):
                raise click.BadParameter(f"runtime is {setup['runtime']}; there are auto, {', '.join(RUNTIMES)}")
            wished: dict[str, Any] = {"precision": setup.get("precision", "fp32"), "runtime": setup.get("runtime")}
            variant = Variant(backbone, attention, **wished)
            try:
                repository = build(variant, models)
            except BuildError as error:
                raise click.ClickException(str(error)) from None
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eca-peer-")))
            tuned(repository, variant.name, scratch / "repository", setup)
            settings: dict[str, object] = {k: v for k, v in setup.items() if k not in TUNED}
            if "threads" in setup:
                settings["triton_threads"] = setup["threads"]
            with surroundings(setup):
                service = stack.enter_context(serving(scratch / "repository", scratch, settings))
            names.append(f"ECA Serve {text or 'as it is'}")
            addresses.append((service.url, f"127.0.0.1:{service.triton_port}", variant.name, service.process.pid))
        plain = Variant(backbone, attention)
        home = build(plain, models) / plain.name
        version = max((path for path in home.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        recipe: Preprocessing = read(version).preprocessing
        engine_file, cores = version / "model.onnx", len(os.sched_getaffinity(0))
        peer_url, peer_pid = stack.enter_context(peer(engine_file, home / "labels.txt", workers))
        every = stack.enter_context(Loops(str(engine_file), images, cores, 1))
        one = stack.enter_context(Loops(str(engine_file), images, 1, cores))
        total = count * (len(clients) * (1 + len(names)) + 3 + len(names))
        with tqdm(total=total, desc="measuring", unit="block", disable=None) as bar:

            async def everything() -> dict[tuple[str, int], Figures]:
                contenders[PEER] = Contender(Http(peer_url, images, "/classify"), "", peer_pid)
                for name, (url, triton, model, pid) in zip(names, addresses, strict=True):
                    contenders[name] = Contender(Http(url, images), model, pid)
                    direct = TritonGrpc(triton, images, recipe, connections=2)
                    engines[f"{name}: Triton directly"] = Contender(direct, model, pid)
                return await rounds(contenders, engines, (every, one), clients, count, seconds, len(images), bar)

            found = uvloop.run(everything())
    click.echo(
        "\n".join([*(f"{key}: {value}" for key, value in facts.items()), busy(facts), *table(found, names, clients)])
    )
    if file:
        rows = [{"service": name, "clients": level, **asdict(each)} for (name, level), each in found.items()]
        file.write_text(json.dumps({"environment": facts, "figures": rows}))
    sys.exit(1 if any(each.failures for each in found.values()) else 0)


if __name__ == "__main__":
    main()
