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
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
import uvloop
from eca_build.errors import BuildError
from eca_build.networks.attention import Kind
from eca_build.targets import RUNTIMES
from eca_service.contract import Preprocessing, read
from tqdm import tqdm

from tests.load.environment import Written, busy, environment
from tests.load.generator import closed_loop
from tests.load.in_process import Loops, Order
from tests.load.matrix import BACKBONES, DEMO_WEIGHTS, Variant, build
from tests.load.measure import end_on_sigterm, serving
from tests.load.photographs import photographs
from tests.load.processor import processor_s, waited_s, waits
from tests.load.protocols import Http, TritonGrpc, Way
from tests.load.setups import TUNED, plain_service, setup_of, surroundings, tuned
from tests.load.verdicts import ALONE, LIMIT, PEER, Figures, table


@dataclass(frozen=True)
class Contender:
    """A way to a service, the model to name there, and the process above all of its processes."""

    way: Way
    model: str
    pid: int


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


@click.command(context_settings={"show_default": True})
@click.option(
    "--ours", multiple=True, default=("",), help="A set-up of ours, name=value,name=value; may be given several times."
)
@click.option(
    "--backbone",
    type=click.Choice([name for name in BACKBONES if name not in DEMO_WEIGHTS]),
    default="mobilenetv2",
    help="Network that both serve, with random weights.",
)
@click.option("--attention", type=click.Choice(get_args(Kind)), default="eca", help="Its attention.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(1, 8, 32),
    help="Callers at once; may be given several times.",
)
@click.option("--rounds", "count", type=click.IntRange(1, 100), default=5, help="Rounds of all.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3.0, help="Length of each measurement.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, help="Workers of the plain service.")
@click.option("--images", "folder", type=click.Path(path_type=Path, exists=True), help="A folder of JPEGs to send.")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=Path(".cache/bench"),
    help="Folder for the models built for it.",
)
@click.option("--json", "file", type=Written(), help="Write all figures there.")
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
    setups = [setup_of(text) for text in ours]
    end_on_sigterm()
    images, source = photographs(folder)
    facts = environment(source)
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        engines: dict[str, Contender] = {}
        names, addresses = [], []
        for text, setup in zip(ours, setups, strict=True):
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
        peer_url, peer_pid = stack.enter_context(plain_service(engine_file, home / "labels.txt", workers))
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
