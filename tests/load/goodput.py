"""Answers in time by offered load: what is over the capacity must cost those that are accepted nothing.

    python -m tests.load.goodput [--rounds 3] [--seconds 8] [--deadline-ms 1500]

Open arrivals (Poisson), over gRPC, each request with eight images and a deadline, latency from the planned start. The
capacity is what 16 callers that wait for their answers get. Loads of 1 to 5 times the capacity take turns within each
round. The callers have the last core and the service the others, for to ask five times as much costs too. Goodput are
images answered in time; "accepted" is whatever was not refused at once. A refusal costs the gateway 0.5 milliseconds
of a core, two thirds of them gRPC's own, and more where it interrupts the engine on the same core: beside a network as
small as the demo's, that is goodput lost; --repository and --model name another, such as MobileNetV2.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import grpc
from tritonclient.grpc import service_pb2_grpc

from tests.integration.callers import infer_request
from tests.integration.conftest import MODEL, ROOT, Service, start
from tests.load import noop
from tests.load.measure import end_on_sigterm

IMAGES = 8
CALLERS = 16
MULTIPLES = (0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
REFUSED = {"overloaded"}
MOST_REQUESTS = 20_000  # whatever the capacity, the generator is bounded


@dataclass
class Outcome:
    """One measurement: offered and answered in time (images/s), p99 of the accepted (s), and all codes."""

    offered_per_s: float
    goodput_per_s: float
    p99_s: float
    codes: Counter[str]

    @property
    def late(self) -> float:
        """The share of the accepted that missed its deadline."""
        accepted = sum(count for code, count in self.codes.items() if code not in REFUSED)
        return self.codes["deadline_exceeded"] / max(1, accepted)


class Generator:
    """Asks one model of a service, over one channel."""

    def __init__(self, service: Service, model: str, deadline_s: float) -> None:
        images = [path.read_bytes() for path in sorted((ROOT / "build" / "demo" / "images").iterdir())]
        self._requests = [infer_request(model, images[at : at + IMAGES]) for at in range(0, 48, IMAGES)]
        self._address = f"127.0.0.1:{service.grpc_port}"
        self._deadline_s = deadline_s

    async def __aenter__(self) -> Generator:
        self._channel = grpc.aio.insecure_channel(self._address)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def one(self, index: int, timeout_s: float) -> str:
        """The code of one request."""
        try:
            await self._infer(self._requests[index % len(self._requests)], timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            found = dict(error.trailing_metadata() or ()).get("eca-code", error.code().name.lower())
            return found if isinstance(found, str) else found.decode()
        return "ok"

    async def capacity(self, seconds: float) -> float:
        """Requests a second that CALLERS get, each asking again once it is answered."""
        counted, end = 0, time.monotonic() + seconds

        async def caller() -> None:
            nonlocal counted
            while time.monotonic() < end:
                answered = await self.one(counted, 30) == "ok"
                counted += answered

        started = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return counted / (time.monotonic() - started)

    async def offer(self, rate: float, seconds: float, seed: int = 0) -> Outcome:
        """`rate` requests a second for so long, whether answered or not; for less where they are MOST_REQUESTS sooner.

        Answers count from when the first deadline passes, for until then the queue only fills, to the last arrival.
        """
        draw, codes, spent = random.Random(seed), Counter[str](), []
        tasks: list[asyncio.Task[None]] = []
        in_time = 0
        if (most_s := MOST_REQUESTS / rate) < min(seconds, 2 * self._deadline_s):
            raise click.ClickException(
                f"{rate:.0f} requests/s are {MOST_REQUESTS} within {most_s:.1f} s: --deadline-ms is to be half of it"
            )
        seconds = min(seconds, most_s)
        loop = asyncio.get_running_loop()

        async def planned(at: float, index: int) -> None:
            nonlocal in_time
            code = await self.one(index, self._deadline_s)
            took = loop.time() - at
            codes[code] += 1
            if code not in REFUSED:
                spent.append(took)
            steady = began + self._deadline_s < loop.time() <= began + seconds
            in_time += steady and code == "ok" and took <= self._deadline_s

        began = at = loop.time()
        while at < began + seconds and len(tasks) < MOST_REQUESTS:
            at += draw.expovariate(rate)
            if (wait := at - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(planned(at, len(tasks))))
        offered_s = loop.time() - began
        await asyncio.gather(*tasks)
        spent.sort()
        p99 = spent[int(0.99 * (len(spent) - 1))] if spent else 0.0
        return Outcome(IMAGES * len(tasks) / offered_s, IMAGES * in_time / (seconds - self._deadline_s), p99, codes)


async def sweep(
    service: Service, model: str, multiples: Sequence[float], rounds: int, seconds: float, deadline_s: float
) -> dict[float, list[Outcome]]:
    """Each multiple of the capacity, once in every round."""
    found: dict[float, list[Outcome]] = {multiple: [] for multiple in multiples}
    async with Generator(service, model, deadline_s) as generator:
        await generator.offer(5, 2)  # costs are learnt
        for turn in range(rounds):
            if not (capacity := await generator.capacity(seconds / 2)):
                raise click.ClickException(f"{model} answers nothing; `eca-serve doctor` says why")
            order = list(multiples)
            random.Random(turn).shuffle(order)
            for multiple in order:
                found[multiple].append(await generator.offer(multiple * capacity, seconds, turn))
    return found


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of all loads.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=8.0, show_default=True, help="Length of each load in a round."
)
@click.option("--deadline-ms", type=click.FloatRange(1), default=1500.0, show_default=True, help="Of each request.")
@click.option(
    "--repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="model_repository",
    show_default=True,
    help="Model repository that is served.",
)
@click.option("--model", default=MODEL, show_default=True, help="Model that is asked.")
@click.option("--paced", is_flag=True, help="Replace the network by an engine that sleeps 5 ms per image.")
def main(rounds: int, seconds: float, deadline_ms: float, repository: Path, model: str, paced: bool) -> None:
    """Sweeps the offered load; exit code 1 where five times the capacity costs goodput or deadlines."""
    end_on_sigterm()
    if 2 * deadline_ms > 1000 * seconds:
        raise click.UsageError(
            "--seconds is to be twice the deadline at least: answers count from when the first passes"
        )
    with tempfile.TemporaryDirectory() as folder:
        if paced:
            repository = Path(folder) / "repository"
            model = noop.publish(repository, crop=32, pace_s=0.005).name
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:-1] or cores)
        service = start(repository, Path(folder), triton_threads=1, decode_threads=1)
        os.sched_setaffinity(0, cores[-1:])
        try:
            service.await_ready()
            found = asyncio.run(sweep(service, model, MULTIPLES, rounds, seconds, deadline_ms / 1000))
        finally:
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(40)
    goodput = {multiple: statistics.median(one.goodput_per_s for one in row) for multiple, row in found.items()}
    peak = max(goodput.values())
    for multiple, row in found.items():
        p99_ms = 1000 * statistics.median(one.p99_s for one in row)
        late = statistics.median(one.late for one in row)
        codes = dict(sum((one.codes for one in row), Counter[str]()))
        click.echo(
            f"{multiple:3.1f} x capacity: goodput {goodput[multiple]:6.1f} images/s = {goodput[multiple] / peak:4.0%} "
            f"of the peak, p99 of the accepted {p99_ms:.0f} ms, late {late:.1%}, {codes}"
        )
    last = found[5.0]
    good = goodput[5.0] >= 0.95 * peak and statistics.median(one.p99_s for one in last) <= deadline_ms / 1000
    click.echo("Five times the capacity costs nothing." if good else "Wrong: five times the capacity costs goodput.")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
