"""How tensors reach a Triton on the same host fastest: bytes in the gRPC message, or Triton's system shared memory.

    python -m tests.load.transport [--rounds 7] [--calls 60]

For 1, 8 and 32 images of 224 x 224 x 3 the two ways take turns within each round, against the embedded Triton and a
model that costs nothing. Both start from the same decoded arrays. Shared memory: one region registered once, the
images copied into a slot of it, and the message names the slot. Processor time is the caller's and Triton's together.
"""

from __future__ import annotations

import asyncio
import mmap
import os
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
from eca_service.backend import Triton
from eca_service.contract import PROBABILITIES
from eca_service.infer_request import with_pixels
from eca_service.triton.supervisor import TritonServer
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.load import noop
from tests.load.processor import processor_s

SIZES = (1, 8, 32)
IMAGE_BYTES = noop.CROP * noop.CROP * 3
Ask = Callable[[list[Any]], Awaitable[Any]]


async def ways(triton: Triton, contract: Any, region: str) -> tuple[dict[str, Ask], Callable[[], Awaitable[None]]]:
    """The two transports by name, and what ends them."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(triton._channel)
    size = IMAGE_BYTES * max(SIZES)
    path = Path("/dev/shm") / region
    with path.open("wb+") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        memory = mmap.mmap(file.fileno(), size)
    slot = np.frombuffer(memory, np.uint8)
    await stub.SystemSharedMemoryRegister(
        service_pb2.SystemSharedMemoryRegisterRequest(name=region, key=f"/{region}", offset=0, byte_size=size)
    )

    async def by_message(images: list[Any]) -> Any:
        return await triton._infer(with_pixels(images, contract, (PROBABILITIES,)), timeout=10)

    async def by_memory(images: list[Any]) -> Any:
        used = 0
        for image in images:
            slot[used : used + IMAGE_BYTES] = image.ravel()
            used += IMAGE_BYTES
        request = service_pb2.ModelInferRequest(model_name=contract.name, model_version=str(contract.version))
        tensor = request.inputs.add(name="image", datatype="UINT8", shape=[len(images), *images[0].shape])
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = used
        request.outputs.add(name="probabilities")
        return await triton._infer(request.SerializeToString(), timeout=10)

    async def end() -> None:
        await stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest(name=region))
        path.unlink()

    return {"message": by_message, "memory": by_memory}, end


async def measure(rounds: int, calls: int, pid: int, address: str, contract: Any) -> None:
    """Prints one line a size."""
    triton = Triton(address)
    try:
        await triton.fleet.load(contract, contract_home(contract), {1})
        both, end = await ways(triton, contract, f"eca_transport_{os.getpid()}")
        try:
            for size in SIZES:
                await compare(both, size, rounds, calls, pid)
        finally:
            await end()
    finally:
        await triton.close()


_homes: dict[str, Path] = {}


def contract_home(contract: Any) -> Path:
    """The folder that holds the model's config.pbtxt."""
    return _homes[contract.name]


async def compare(both: dict[str, Ask], size: int, rounds: int, calls: int, pid: int) -> None:
    """One size: the ways take turns."""
    images = list(np.random.default_rng(1).integers(0, 256, (size, noop.CROP, noop.CROP, 3), np.uint8))
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
    answers = [(await ask(images)).raw_output_contents[0] for ask in both.values()]
    if answers[0] != answers[1]:
        raise click.ClickException("the two transports got different answers")
    for turn in range(rounds):
        for name in sorted(both, reverse=bool(turn % 2)):
            spent, before, own = [], processor_s(pid), time.process_time()
            for _ in range(calls):
                started = time.perf_counter()
                await both[name](images)
                spent.append(time.perf_counter() - started)
            used = time.process_time() - own + processor_s(pid) - before
            rows[name].append((1000 * statistics.median(spent), 1000 * used / calls))
    figures = {name: [statistics.median(column) for column in zip(*row, strict=True)] for name, row in rows.items()}
    ratios = [statistics.median(b[i] / a[i] for a, b in zip(*rows.values(), strict=True)) for i in (0, 1)]
    (wall, used), (wall_m, used_m) = figures["message"], figures["memory"]
    click.echo(
        f"{size:3} images: message {wall:.2f} ms, shared memory {wall_m:.2f} ms (ratio {ratios[0]:.2f}); "
        f"processor {used:.2f} ms and {used_m:.2f} ms (ratio {ratios[1]:.2f})"
    )


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--calls", default=60, show_default=True, help="In each round, of each way.")
def main(rounds: int, calls: int) -> None:
    """Measures both transports."""
    with tempfile.TemporaryDirectory() as folder:
        contract = noop.publish(Path(folder) / "repository")
        _homes[contract.name] = Path(folder) / "repository" / contract.name
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
            assert server.pid is not None
            asyncio.run(measure(rounds, calls, server.pid, server.address, contract))
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
