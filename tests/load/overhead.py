"""What the gateway costs: the time it adds to Triton's own at one caller, and how many requests a core carries.

    python -m tests.load.overhead [--rounds 5] [--seconds 2] [--json FILE]

Decoding is excluded: the gateway runs with its decoder stubbed, here and nowhere else, in front of a model that costs
nothing. A bare FastAPI route that reads the same body and answers as much, Triton asked directly, and the gateway take
turns within each round, so that what else the machine does hurts them alike. Processor time is counted beside the
clock: requests a core are requests by processor seconds, which a busy neighbour does not change.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc
import httpx
import numpy as np
from eca_service.triton.server import free_port
from eca_service.triton.supervisor import TritonServer
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.load import noop
from tests.load.environment import Written
from tests.load.measure import end_on_sigterm
from tests.load.processor import processor_s

BODY_BYTES = 16 << 10  # what an image of 224 x 224 has as a JPEG
ANSWER_S = 30.0  # for the first answer
ANSWER = {
    "model": "noop",
    "version": 1,
    "request_id": "0" * 32,
    "results": [{"predictions": [{"index": i, "label": f"class {i}", "score": 0.1} for i in range(5)], "warnings": []}],
    "timing_ms": {"decode": 0.1, "queue": 0.1, "infer": 0.1, "total": 0.3},
}
BARE = f"""
import json, uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
app, answer = FastAPI(), json.loads({json.dumps(ANSWER)!r})
@app.post("/v1/classify")
async def classify(request: Request) -> JSONResponse:
    await request.body()
    return JSONResponse(answer)
uvicorn.run(app, port=%d, loop="uvloop", http="httptools", access_log=False, log_level="warning")
"""
GATEWAY = """
import numpy as np
from eca_service import decoders
from eca_service.gateway import serve
from eca_service.imaging import Decoded
from eca_service.settings import load
pixels = np.zeros((224, 224, 3), np.uint8)
decoders.decode = lambda *_: Decoded(pixels, ())
serve(load({"log_level": "warning"}))
"""


@dataclass(frozen=True)
class Figures:
    """Milliseconds at one caller (p50), and requests by processor second; each the median over the rounds."""

    bare_ms: float
    triton_ms: float
    gateway_ms: float
    added_ms: float
    bare_per_core: float
    gateway_per_core: float
    gateway_and_triton_per_core: float
    bare_per_s: float
    gateway_per_s: float


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, done: Callable[[float], None]) -> None:
        self._request = request
        self._done = done
        self._got = bytearray()
        self.failed = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = bytes(self._got).partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.failed = bytes(self._got).decode()
            return
        self._done(time.perf_counter() - self._asked)
        self._got.clear()
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]


async def ask(port: int, callers: int, seconds: float) -> list[float]:
    """Seconds of each answer while `callers` connections ask for so long, and on until there is one.

    Raises RuntimeError for another than 200, and where there is none.
    """
    spent: list[float] = []
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    request, loop = head.encode() + bytes(BODY_BYTES), asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: Caller(request, spent.append), "127.0.0.1", port) for _ in range(callers)
    ]
    await asyncio.sleep(seconds)
    end = loop.time() + ANSWER_S
    while not spent and not any(caller.failed for _, caller in pairs) and loop.time() < end:
        await asyncio.sleep(seconds)
    for transport, caller in pairs:
        transport.abort()
        if caller.failed:
            raise RuntimeError(caller.failed)
    if not spent:
        raise RuntimeError(f"no answer came within {ANSWER_S:.0f} s")
    return spent


def ask_triton(port: int, seconds: float) -> list[float]:
    """Seconds of each answer of Triton itself to one caller."""
    image = np.zeros((1, noop.CROP, noop.CROP, 3), np.uint8)
    request = service_pb2.ModelInferRequest(model_name=noop.NAME)
    request.inputs.add(name="image", datatype="UINT8", shape=image.shape)
    request.outputs.add(name="probabilities")
    request.raw_input_contents.append(image.tobytes())
    spent: list[float] = []
    end = time.monotonic() + seconds
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        infer(request)
        while not spent or time.monotonic() < end:
            started = time.perf_counter()
            infer(request)
            spent.append(time.perf_counter() - started)
    return spent


@contextmanager
def running(code: str, environment: dict[str, str], ready: str) -> Iterator[int]:
    """The process of a program of ours, once `ready` answers."""
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                if httpx.get(ready).status_code < 500:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
            if process.poll() is not None:
                raise RuntimeError("a server did not start")
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def gateway(triton: TritonServer, repository: Path, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """The process and port of a gateway that does not decode, in front of `triton`."""
    port = free_port()
    settings = {"HTTP_PORT": port, "GRPC_PORT": free_port(), "TRITON_URL": triton.address, "REPOSITORY": repository}
    settings |= {"DECODE_THREADS": 1, "TRITON_SHARED_MEMORY": True}  # as in `eca-serve up`
    told = {name: value for name, value in environment.items() if not name.startswith("ECA_")}
    told |= {f"ECA_{name}": str(value) for name, value in settings.items()}
    with running(GATEWAY, told, f"http://127.0.0.1:{port}/readyz") as pid:
        yield pid, port


@contextmanager
def noop_triton() -> Iterator[tuple[TritonServer, Path]]:
    """Triton with a model that costs nothing, and its repository."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        noop.publish(repository)
        triton = TritonServer(repository, 0, Path(folder) / "triton.log", threads=1)
        triton.start()
        try:
            yield triton, repository
        finally:
            triton.stop()


def measure(rounds: int, seconds: float, callers: int = 32) -> Figures:
    """All figures, from `rounds` rounds of five measurements of `seconds` each."""
    port, environment = free_port(), dict(os.environ)
    with (
        noop_triton() as (triton, repository),
        running(BARE % port, environment, f"http://127.0.0.1:{port}/docs") as bare,
        gateway(triton, repository, environment) as ours,
    ):
        assert triton.pid is not None
        return _measure(rounds, seconds, callers, (bare, port), ours, (triton.pid, triton.port))


def _measure(
    rounds: int, seconds: float, callers: int, bare: tuple[int, int], gateway: tuple[int, int], triton: tuple[int, int]
) -> Figures:
    rows: list[dict[str, float]] = []
    for turn in range(rounds + 1):
        row = {}
        for name, (_, port) in (("bare", bare), ("gateway", gateway)):
            row[f"{name}_ms"] = 1000 * statistics.median(asyncio.run(ask(port, 1, seconds)))
            if name == "bare":
                row["triton_ms"] = 1000 * statistics.median(ask_triton(triton[1], seconds))
        row["added_ms"] = row["gateway_ms"] - row["triton_ms"]
        for name, (pid, port) in (("bare", bare), ("gateway", gateway)):
            before, triton_before = processor_s(pid), processor_s(triton[0])
            count = len(asyncio.run(ask(port, callers, seconds)))
            own, its = processor_s(pid) - before, processor_s(triton[0]) - triton_before
            row[f"{name}_per_s"] = count / seconds
            row[f"{name}_per_core"] = count / own
            if name == "gateway":
                row["gateway_and_triton_per_core"] = count / (own + its)
        if turn:  # the first warms up
            rows.append(row)
            print(" ".join(f"{key} {value:.2f}" for key, value in row.items()), file=sys.stderr)
    return Figures(**{key: statistics.median(row[key] for row in rows) for key in rows[0]})


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of all measurements.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    help="Length of each of the five measurements in a round.",
)
@click.option("--json", "file", type=Written(), help="Write the figures there.")
def main(rounds: int, seconds: float, file: Path | None) -> None:
    """Measures what the gateway adds, and says it in sentences."""
    end_on_sigterm()
    found = measure(rounds, seconds)
    if file:
        file.write_text(json.dumps(asdict(found), indent=1))
    click.echo(
        f"One caller: the gateway answers in {found.gateway_ms:.2f} ms, Triton alone in {found.triton_ms:.2f} ms: "
        f"{found.added_ms:.2f} ms are added; a bare FastAPI route takes {found.bare_ms:.2f} ms "
        f"(the gateway adds {found.added_ms / found.bare_ms:.1f} of it)."
    )
    click.echo(
        f"A core carries {found.gateway_per_core:.0f} requests/s in the gateway, "
        f"{found.gateway_and_triton_per_core:.0f} with Triton's share, {found.bare_per_core:.0f} in a bare FastAPI "
        f"route: ratios {found.gateway_per_core / found.bare_per_core:.2f} and "
        f"{found.gateway_and_triton_per_core / found.bare_per_core:.2f}. By the clock with 32 callers, all on this "
        f"machine: {found.gateway_per_s:.0f} and {found.bare_per_s:.0f} requests/s."
    )


if __name__ == "__main__":
    main()
