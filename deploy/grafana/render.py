"""Draws the dashboards from a real run: python -m deploy.grafana.render (needs `prometheus`, extra `pictures`).

There is no Grafana in it. The service runs with a Triton that shows its metrics; callers ask it as the story below has
it; a Prometheus scrapes both by our own configuration and rules. Then each panel's queries, as they stand in the
dashboards, are asked of that Prometheus, and what it answers is drawn where Grafana would draw it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from eca_service.triton import server
from eca_service.triton.server import free_port

from deploy import options

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGES = ROOT / "build" / "demo" / "images"
SCRAPE_S = 2
RATE = "15s"  # Grafana takes four scrapes for $__rate_interval, and at least its own resolution
TRITON_DOWN_S = 6.0


@dataclass(frozen=True)
class Chapter:
    """What callers do for a share of the run: so many of each kind ask all the time."""

    name: str
    share: float
    singles: int = 0
    batches: int = 0
    hurried: int = 0  # with deadlines too short for the queue
    broken: int = 0  # send what is no image


STORY = (
    Chapter("a few callers", 0.25, singles=2),
    Chapter("many callers", 0.25, singles=12, batches=2),
    Chapter("too many, in a hurry, and some with broken images", 0.2, singles=8, batches=6, hurried=12, broken=2),
    Chapter("Triton is killed once", 0.15, singles=6),
    Chapter("calm again", 0.15, singles=2),
)


Kind = Callable[[httpx.Client, int], httpx.Response]


class Callers:
    """Asks the service over HTTP, model after model, until the block ends."""

    def __init__(self, url: str, models: list[str]) -> None:
        self.url, self.models = url, models
        self.images = [path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))]

    @contextmanager
    def of(self, chapter: Chapter) -> Iterator[None]:
        """These callers, for as long as the block lasts."""
        ended = threading.Event()
        kinds: dict[Kind, int] = {
            self._single: chapter.singles,
            self._batch: chapter.batches,
            self._hurried: chapter.hurried,
            self._broken: chapter.broken,
        }

        def ask(kind: Kind, number: int) -> None:
            with httpx.Client(base_url=self.url, timeout=30) as client:
                while not ended.is_set():
                    try:
                        ended.wait(float(kind(client, number).headers.get("retry-after", 0)))
                    except httpx.HTTPError:
                        ended.wait(1)
                    number += 1

        threads = [
            threading.Thread(target=ask, args=(kind, number))
            for kind, count in kinds.items()
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _route(self, number: int) -> str:
        return f"/v1/models/{self.models[number % len(self.models)]}/classify"

    def _single(self, client: httpx.Client, number: int) -> httpx.Response:
        return client.post(self._route(number), content=self.images[number % len(self.images)])

    def _batch(self, client: httpx.Client, number: int, **headers: str) -> httpx.Response:
        images = [("image", image) for image in self.images * 2][:16]
        return client.post(self._route(number), files=images, headers=headers)

    def _hurried(self, client: httpx.Client, number: int) -> httpx.Response:
        return self._batch(client, number, **{"x-request-timeout-ms": "150"})

    def _broken(self, client: httpx.Client, number: int) -> httpx.Response:
        time.sleep(0.2)
        return client.post(self._route(number), content=self.images[number % len(self.images)][:200])


@contextmanager
def process(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, ended with the block."""
    with log.open("ab") as out:
        running = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def await_answer(url: str, what: str) -> None:
    """Returns once `url` answers 200; exits where it does not within two minutes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.exit(f"{what} did not answer at {url}")


def configuration(folder: Path, gateway: str, triton: str) -> Path:
    """Our prometheus.yml with this run's addresses in it, scraping more often."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = re.sub(r"dns_sd_configs:\n.*\n", f'static_configs: [{{targets: ["{gateway}"]}}]\n', text)
    text = re.sub(r"file_sd_configs:\n.*\n", f'static_configs: [{{targets: ["{triton}"]}}]\n', text)
    text = re.sub(r"(scrape|evaluation)_interval: \w+", rf"\1_interval: {SCRAPE_S}s", text)
    file = folder / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus", str(DEPLOY / "prometheus")))
    return file


def run(repository: Path, seconds: float, folder: Path, draw: Callable[[str, float, float], None]) -> None:
    """Plays the story, then calls `draw` with Prometheus' address and the time's begin and end."""
    models = sorted(home.name for home in repository.iterdir() if (home / "config.pbtxt").exists())
    if not models:
        sys.exit(f"{repository} holds no model; `make models` builds the demo networks")
    http, grpc, triton, triton_metrics, prometheus = (free_port() for _ in range(5))
    server.assemble_backends(folder / "backends")
    binary = server.installation() / "bin" / "tritonserver"
    command = server.command(binary, folder / "backends", repository, triton, f"eca_triton_{os.getpid()}_")
    command.remove("--allow-metrics=false")
    command += ["--metrics-address=127.0.0.1", f"--metrics-port={triton_metrics}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")}
    environment |= {"ECA_HTTP_PORT": str(http), "ECA_GRPC_PORT": str(grpc), "ECA_REPOSITORY": str(repository)}
    environment |= {"ECA_TRITON_URL": f"127.0.0.1:{triton}", "ECA_LOG_LEVEL": "warning"}
    gateway = [sys.executable, "-c", "from eca_service.cli import main; main()", "gateway"]
    data = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus}"]
    url = f"http://127.0.0.1:{prometheus}"
    with ExitStack() as stack:

        def start_triton() -> AbstractContextManager[object]:
            return process(command, folder / "triton.log", server.environment(2, folder, folder / "backends"))

        tritons = stack.enter_context(ExitStack())
        tritons.enter_context(start_triton())
        stack.enter_context(process(gateway, folder / "gateway.log", environment))
        file = configuration(folder, f"127.0.0.1:{http}", f"127.0.0.1:{triton_metrics}")
        stack.enter_context(process(["prometheus", f"--config.file={file}", *data], folder / "prometheus.log"))
        await_answer(f"http://127.0.0.1:{http}/readyz", "the gateway")
        await_answer(f"{url}/-/ready", "Prometheus")
        callers, began = Callers(f"http://127.0.0.1:{http}", models), time.time()
        for chapter in STORY:
            print(f"{chapter.name}: {seconds * chapter.share:.0f} s", flush=True)
            with callers.of(chapter):
                if "killed" in chapter.name:
                    time.sleep(TRITON_DOWN_S)
                    tritons.close()
                    time.sleep(TRITON_DOWN_S)
                    tritons.enter_context(start_triton())
                time.sleep(seconds * chapter.share)
        time.sleep(2 * SCRAPE_S)
        draw(url, began, time.time())


def series(url: str, query: str, begin: float, end: float) -> list[dict[str, Any]]:
    """What Prometheus answers for a range, a panel's variables filled in as Grafana does."""
    expression = query.replace("$__rate_interval", RATE).replace("$model", ".+")
    parameters: dict[str, Any] = {"query": expression, "start": begin, "end": end, "step": SCRAPE_S}
    answer = httpx.get(f"{url}/api/v1/query_range", params=parameters, timeout=30).json()
    if answer["status"] != "success":
        sys.exit(f"{query}: {answer['error']}")
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def legend(form: str, labels: dict[str, str]) -> str:
    """Grafana's legend of one series."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), form).strip()


@click.command()
@options.repository("Model repository that is served.")
@click.option("--seconds", type=click.FloatRange(30), default=300.0, show_default=True, help="Length of the run.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEPLOY / "grafana" / "pictures",
    show_default="deploy/grafana/pictures",
    help="Folder for the pictures.",
)
def main(repository: Path, seconds: float, out: Path) -> None:
    """Runs the service under load, with Prometheus, and draws the Grafana dashboards from what was scraped."""
    if shutil.which("prometheus") is None:
        sys.exit("Prometheus is not installed; it is Debian's package `prometheus`")
    from deploy.grafana import picture

    def draw(url: str, begin: float, end: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
            dashboard = json.loads(file.read_text())
            drawn = [
                [
                    (legend(target["legendFormat"], one["metric"]), one["values"])
                    for target in panel["targets"]
                    for one in series(url, target["expr"], begin, end)
                ]
                for panel in dashboard["panels"]
            ]
            target = out / f"{file.stem}.png"
            picture.draw(dashboard, drawn, (begin, end), "; ".join(chapter.name for chapter in STORY), target)
            print(target)

    with tempfile.TemporaryDirectory(prefix="eca-render-") as folder:
        run(repository.absolute(), seconds, Path(folder), draw)


if __name__ == "__main__":
    main()
