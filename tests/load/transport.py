"""How tensors reach a Triton on the same host fastest: in Triton's system shared memory, or in the gRPC message; over
our own HTTP/2 connection, or by gRPC's client.

    python -m tests.load.transport [--rounds 7] [--calls 60]

For 1, 8 and 32 images of 224 x 224 x 3 the ways take turns within each round, against the embedded Triton and a model
that costs nothing. All are the gateway's own and start from the same decoded arrays. Processor time is the
caller's and Triton's together.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from eca_service.backend import INFER, Triton
from eca_service.contract import PROBABILITIES, Contract
from eca_service.triton.supervisor import TritonServer
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.load import noop
from tests.load.measure import end_on_sigterm
from tests.load.processor import processor_s
from tests.unit.made_triton import Never, connected

SIZES = (1, 8, 32)
PATIENCE_S = 30.0
Ask = Callable[[list[Any]], Awaitable[Any]]


def way(triton: Triton, contract: Contract) -> Ask:
    """Probabilities [N, K] of N images uint8 [H, W, 3], as the gateway asks for them."""

    async def ask(images: list[Any]) -> Any:
        due = asyncio.get_running_loop().time() + PATIENCE_S
        return (await triton.infer(images, contract, due))[PROBABILITIES]

    return ask


async def measure(rounds: int, calls: int, server: TritonServer, contract: Contract, home: Path) -> None:
    """Prints one line a size; `home` has the model's config.pbtxt."""
    assert server.pid is not None
    tritons = {
        "shared memory": Triton(server.address, same_host=True),
        "message": Triton(server.address),
        "shared memory, gRPC's client": Triton(server.address, same_host=True),
        "message, gRPC's client": Triton(server.address),
    }
    try:
        for name, triton in tritons.items():
            if "client" in name:
                triton._only = Never(INFER)
            await triton.fleet.load(contract, home, {contract.version})
            await connected(triton)
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            shared = stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest()).regions
        if not shared:
            raise click.ClickException("no memory is shared with Triton; has this machine a /dev/shm?")
        for size in SIZES:
            await compare(
                {name: way(each, contract) for name, each in tritons.items()}, size, rounds, calls, server.pid
            )
    finally:
        for triton in tritons.values():
            await triton.close()


async def compare(ways: dict[str, Ask], size: int, rounds: int, calls: int, pid: int) -> None:
    """One size: the ways take turns; each is beside the first."""
    images = list(np.random.default_rng(1).integers(0, 256, (size, noop.CROP, noop.CROP, 3), np.uint8))
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    first, *others = [await ask(images) for ask in ways.values()]
    if not all(np.array_equal(first, other) for other in others):
        raise click.ClickException("two ways got different answers")
    for turn in range(rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            spent, before, own = [], processor_s(pid), time.process_time()
            for _ in range(calls):
                started = time.perf_counter()
                await ways[name](images)
                spent.append(time.perf_counter() - started)
            used = time.process_time() - own + processor_s(pid) - before
            rows[name].append((1000 * statistics.median(spent), 1000 * used / calls))
    base = next(iter(rows.values()))
    for name, row in rows.items():
        wall, used = (statistics.median(column) for column in zip(*row, strict=True))
        walls, useds = ([b[i] / a[i] for a, b in zip(base, row, strict=True)] for i in (0, 1))
        click.echo(
            f"{size:3} images, {name}: {wall:.2f} ms ({statistics.median(walls):.2f} x the first), "
            f"processor {used:.2f} ms ({statistics.median(useds):.2f} x)"
        )


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds of all ways.")
@click.option(
    "--calls", type=click.IntRange(1), default=60, show_default=True, help="Calls in each round, for each way."
)
def main(rounds: int, calls: int) -> None:
    """Measures all of them."""
    end_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        contract = noop.publish(Path(folder) / "repository")
        server = TritonServer(Path(folder) / "repository", 0, Path(folder) / "triton.log", threads=1)
        server.start()
        try:
            for _ in range(100):
                with grpc.insecure_channel(server.address) as channel:
                    try:
                        grpc.channel_ready_future(channel).result(0.5)
                        break
                    except grpc.FutureTimeoutError:
                        continue
            asyncio.run(measure(rounds, calls, server, contract, Path(folder) / "repository" / contract.name))
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
