"""One stretch of load on a service that runs already; prints what it saw.

python -m tests.load.once --rate 50 --seconds 10
python -m tests.load.once --callers 8 --way grpc --url 127.0.0.1:8081 --model resnet14-eca
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import uvloop

from tests.load.arrivals import Process, planned
from tests.load.environment import environment
from tests.load.generator import Block, closed_loop, open_loop
from tests.load.photographs import photographs
from tests.load.protocols import GatewayGrpc, Http, host_and_port, require_loopback


async def load(
    way: str, url: str, model: str, images: list[bytes], rate: float, process: Process, callers: int, seconds: float,
    most: int,
) -> Block:  # fmt: skip
    """Open load at `rate` a second where that is above 0, else `callers` in closed load."""
    host, port = host_and_port(url)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    road = GatewayGrpc(address, images) if way == "grpc" else Http(url, images)
    try:
        if rate:
            return await open_loop(road, model, planned(process, rate, seconds, most, 1), len(images))
        return await closed_loop(road, model, callers, seconds, len(images), most)
    finally:
        await road.close()


def figures(block: Block) -> dict[str, object]:
    """For people and programs; latencies in milliseconds."""
    spent = block.latencies_s
    p50, p95, p99 = (round(1000 * float(np.percentile(spent, q)), 2) if spent else None for q in (50, 95, 99))
    late = round(1000 * float(np.percentile(block.late_s, 99)), 2) if block.late_s else 0.0
    return {
        "sent": block.sent,
        "answered": len(block.latencies_s),
        "failures": block.failures,
        "per_s": round(block.per_s, 2),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "generator_late_p99_ms": late,
        "stages_ms": {name: round(float(np.mean(values)), 2) for name, values in block.stages.items()},
    }


@click.command(context_settings={"show_default": True})
@click.option("--way", type=click.Choice(["http", "grpc"]), default="http", help="Protocol.")
@click.option("--url", default="http://127.0.0.1:8080", help="http://HOST:PORT or HOST:PORT.")
@click.option("--target", help="Repeat the host here if it is not this machine, so that no load is sent by mistake.")
@click.option("--model", required=True, help="Model to ask.")
@click.option(
    "--rate", type=click.FloatRange(0, 100_000), default=0.0, help="Open load with so many requests a second."
)
@click.option(
    "--process", type=click.Choice(["poisson", "constant"]), default="poisson", help="Arrivals of an open load."
)
@click.option(
    "--callers", type=click.IntRange(1, 1024), default=8, help="Callers of a closed load, used without --rate."
)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, help="How long load is sent.")
@click.option("--most", type=click.IntRange(1), default=100_000, help="Most requests to send, whatever the time.")
@click.option("--images", "folder", type=click.Path(path_type=Path, exists=True), help="A folder of JPEGs to send.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the environment.")
def main(
    way: str,
    url: str,
    target: str | None,
    model: str,
    rate: float,
    process: Process,
    callers: int,
    seconds: float,
    most: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Sends load and prints answers a second, latencies and failures; exit code 1 where a request failed."""
    try:
        require_loopback(url, target)
        images, source = photographs(folder)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    block = uvloop.run(load(way, url, model, images, rate, process, callers, seconds, most))
    found = figures(block)
    if as_json:
        click.echo(json.dumps(found | {"environment": environment(source)}))
    else:
        click.echo("\n".join(f"{name:<22} {value}" for name, value in found.items()))
    sys.exit(1 if block.failures else 0)


if __name__ == "__main__":
    main()
