"""What the generator itself costs: its most requests a second against a server that does nothing, and how late it is.

    python -m tests.load.generator_cost

wrk is measured beside it where it is installed: written in C, closed load only, one body.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import uvloop
from eca_service.triton.server import free_port

from tests.load.arrivals import planned
from tests.load.generator import closed_loop, open_loop
from tests.load.measure import end_on_sigterm
from tests.load.photographs import photographs
from tests.load.protocols import Http

TRIVIAL = """
import asyncio, sys, uvloop
STAGES = b"Server-Timing: decode;dur=1, queue;dur=0, infer;dur=1, total;dur=2"
ANSWER = b"HTTP/1.1 200 OK\\r\\n" + STAGES + b"\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.left, self.head = transport, 0, b""
    def data_received(self, data):
        if not self.left:
            self.head += data
            end = self.head.find(b"\\r\\n\\r\\n")
            if end < 0:
                return
            at = self.head.lower().index(b"content-length:") + 15
            self.left = end + 4 + int(self.head[at : self.head.index(b"\\r", at)]) - len(self.head)
            self.head = b""
        else:
            self.left -= len(data)
        if not self.left:
            self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
uvloop.run(main())
"""


@dataclass(frozen=True)
class Cost:
    """Of the generator: requests a second, its processor time for one, and how late it starts what was planned."""

    most_per_s: float
    processor_us: float
    late_p50_us: float
    late_p99_us: float
    wrk_per_s: float | None


@contextlib.contextmanager
def trivial_server() -> Iterator[int]:
    """The port of a server that reads a body and says `{}`, once it listens."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", TRIVIAL, str(port)])
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


async def cost(port: int, images: list[bytes], seconds: float) -> Cost:
    """Measures; a tenth of what it can is then planned, to see how late it starts."""
    way = Http(f"http://127.0.0.1:{port}", images)
    try:
        began = time.process_time()
        closed = await closed_loop(way, "m", 8, seconds, len(images))
        spent = time.process_time() - began
        late = await open_loop(way, "m", planned("poisson", closed.per_s / 10, seconds, 10_000, 1), len(images))
        if closed.failures or late.failures:
            raise RuntimeError(f"requests failed: {closed.failures} {late.failures}")
    finally:
        await way.close()
    p50, p99 = (1e6 * float(np.percentile(late.late_s, q)) for q in (50, 99))
    wrk = await asyncio.to_thread(wrk_per_s, port, images[0], seconds)
    return Cost(closed.per_s, 1e6 * spent / len(closed.latencies_s), p50, p99, wrk)


def wrk_per_s(port: int, body: bytes, seconds: float) -> float | None:
    """wrk's requests a second with 8 connections; None where it is not installed."""
    if shutil.which("wrk") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body)
        script = Path(folder) / "post.lua"
        script.write_text(f'wrk.method="POST"\nlocal f=io.open("{folder}/body","rb")\nwrk.body=f:read("*a")\n')
        command = ["wrk", "-t1", "-c8", f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{port}/m"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
    return next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("Requests/sec"))


@click.command(context_settings={"show_default": True})
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=3.0, help="Length of each measurement.")
def main(seconds: float) -> None:
    """Measures the generator's own cost and says it."""
    end_on_sigterm()
    images, source = photographs()
    with trivial_server() as port:
        found = uvloop.run(cost(port, images, seconds))
    late = f"{found.late_p50_us:.0f} us late (p50), {found.late_p99_us:.0f} us (p99)"
    click.echo(
        f"{source}. Against a server that does nothing: {found.most_per_s:.0f} requests/s, {found.processor_us:.0f} us "
        f"of a core each; what is planned starts {late}."
    )
    if found.wrk_per_s:
        click.echo(f"wrk, on one thread: {found.wrk_per_s:.0f} requests/s")


if __name__ == "__main__":
    main()
