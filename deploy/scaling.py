"""Shows scaling as far as one machine can: python -m deploy.scaling (as root).

Two gateways and three Tritons, each on an address of its own. The gateways know the Tritons by one name, as they know
a headless service on a cluster. Under load from outside: a Triton is added to the name, images spread over all, one is
cut off (its packets are lost, nobody is told) and comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import httpx
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from deploy import options
from deploy.namespaces import SHM, Host, Network, missing, sandbox

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
HTTP, TRITON = 8080, 8001
CALLERS = 4
PAUSE_S = 0.01  # so that the engines, not the cores of this one machine, are what is shared
SPREAD_IMAGES = 600
CUT_OFF_S = 6.0  # twice what it takes to notice


@dataclass
class Figures:
    """What was seen. `codes` counts all answers of the whole run by status; seconds where the name says so."""

    found_s: float = 0.0
    shares: list[float] = field(default_factory=list)
    answered_while_cut_off: int = 0
    longest_while_cut_off_s: float = 0.0
    back_s: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)


class Server:
    """`eca-serve COMMAND` on a host; its log is kept for the moment when it fails."""

    def __init__(self, host: Host, command: str, repository: Path, /, **settings: object) -> None:
        self.host = host
        self.log = SHM / f"{host.name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")}
        environment |= {f"ECA_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {"ECA_REPOSITORY": str(repository), "TMPDIR": str(SHM)}
        start = (sys.executable, "-c", "from eca_service.cli import main; main()", command)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(host.inside(*start), env=environment, stdout=out, stderr=subprocess.STDOUT)

    def images(self, model: str) -> int:
        """Images that this Triton has classified; 0 where it does not have the model or does not answer."""
        try:
            with triton.InferenceServerClient(f"{self.host.address}:{TRITON}") as client:
                return int(client.get_inference_statistics(model, client_timeout=2).model_stats[0].inference_count)
        except InferenceServerException:
            return 0

    def ready(self) -> bool:
        """The gateway's /readyz."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.host.name} ended:\n{self.log.read_text()}")
        try:
            return httpx.get(f"http://{self.host.address}:{HTTP}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


class Load:
    """Callers that ask the gateways in turn, each waiting for its answer; `answers` are (end, seconds, code)."""

    def __init__(self, gateways: list[Server]) -> None:
        self._urls = [f"http://{gateway.host.address}:{HTTP}/v1/classify" for gateway in gateways]
        self._ended = threading.Event()
        self.answers: list[tuple[float, float, str]] = []
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def _call(self, number: int) -> None:
        image = IMAGE.read_bytes()
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    code = str(client.post(self._urls[number % len(self._urls)], content=image).status_code)
                except httpx.HTTPError as error:
                    code = repr(error)
                self.answers.append((time.monotonic(), time.monotonic() - began, code))
                number += 1
                self._ended.wait(PAUSE_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls for as long as the block lasts."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> float:
    """The seconds until `condition` held; TimeoutError with `what` where it did not."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.05)
    return time.monotonic() - began


def show(repository: Path, model: str) -> Figures:
    """The whole story; inside a sandbox."""
    network, figures = Network(), Figures()
    tritons = [
        Server(host, "triton", repository, triton_host=host.address, triton_threads=1, triton_log=SHM / host.name)
        for host in (Host(f"triton{number}", 10 + number) for number in (1, 2, 3))
    ]
    names = [server.host.address for server in tritons]
    network.resolve("triton", names[:2])
    gateways = [
        Server(host, "gateway", repository, host=host.address, triton_url=f"triton:{TRITON}")
        for host in (Host(f"gateway{number}", 20 + number) for number in (1, 2))
    ]
    until(lambda: all(gateway.ready() for gateway in gateways), "the gateways are ready")
    load = Load(gateways)
    with load.running():
        until(lambda: len(load.answers) > 50, "answers come")
        network.resolve("triton", names)
        known = f"{names[2]}:{TRITON}"
        figures.found_s = until(
            lambda: all(known in gateway.log.read_text() for gateway in gateways) and tritons[2].images(model) > 0,
            "both gateways find the third Triton",
        )

        before = [server.images(model) for server in tritons]
        at = len(load.answers)
        until(lambda: len(load.answers) >= at + SPREAD_IMAGES, "a share for each")
        done = [server.images(model) - then for server, then in zip(tritons, before, strict=True)]
        figures.shares = [round(one / sum(done), 4) for one in done]

        tritons[2].host.cut_off()
        cut = time.monotonic()
        time.sleep(CUT_OFF_S)
        tritons[2].host.connect()
        while_cut_off = [seconds for end, seconds, _ in load.answers if end > cut]
        figures.answered_while_cut_off = len(while_cut_off)
        figures.longest_while_cut_off_s = round(max(while_cut_off), 3)
        until(lambda: tritons[2].images(model) > 0, "the third Triton is reached again")
        back = tritons[2].images(model)
        figures.back_s = until(lambda: tritons[2].images(model) > back + 20, "the third Triton works again")
    figures.codes = dict(Counter(code for *_, code in load.answers))
    for server in (*gateways, *tritons):
        server.process.terminate()
    for server in (*gateways, *tritons):
        server.process.wait(30)
    return figures


@click.command()
@options.repository("Model repository that the Tritons serve.")
@click.option("--model", default="resnet14-eca", show_default=True, help="Model whose images are counted.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--inside", is_flag=True, hidden=True)
def main(repository: Path, model: str, as_json: bool, inside: bool) -> None:
    """Starts two gateways and three Tritons in network namespaces, and measures how they share a load.

    One Triton is added under load, cut off and connected again. Needs root, iproute2 and util-linux; takes a minute.
    """
    if not inside:
        if reason := missing():
            sys.exit(reason)
        again = sandbox(sys.executable, "-m", "deploy.scaling", "--inside", *sys.argv[1:])
        sys.exit(subprocess.run(again, cwd=ROOT, check=False).returncode)
    figures = show(repository.absolute(), model)
    if as_json:
        print(json.dumps(asdict(figures)))
        return
    print(f"a third Triton was found and had images of both gateways after {figures.found_s:.1f} s")
    print(f"images by Triton: {', '.join(f'{share:.1%}' for share in figures.shares)}")
    print(
        f"one cut off for {CUT_OFF_S:.0f} s: {figures.answered_while_cut_off} answers, the slowest after "
        f"{figures.longest_while_cut_off_s:.2f} s; back at work {figures.back_s:.1f} s after it was reached again"
    )
    print(f"answers of the whole run by status: {figures.codes}")


if __name__ == "__main__":
    main()
