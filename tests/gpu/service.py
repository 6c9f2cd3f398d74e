"""The whole service on this machine: images a second and latency of each attention, through gateway and Triton."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from eca_build.graphs import AttentionGraph

from tests.gpu.report import Row

ROOT = Path(__file__).parents[2]
KINDS = ("none", "se", "eca")
NEEDS = ("pytriton", "httpx", "pytest", "fastapi", "uvicorn", "onnx")
CALLERS = 64
SECONDS = 4.0


def measure(folder: Path, dry: bool, end: float, note: Callable[[str], None], best: AttentionGraph) -> Iterator[Row]:
    """Builds the three networks, and ECA in its `best` graph, starts the service, calls it.

    Were the build not told a graph, it would make all five of each. What is missing goes to `note`. Raises
    TimeoutExpired where a build is not over at `end`, of time.monotonic().
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        note(f"the service: not installed here: {', '.join(missing)}")
        return
    if end - time.monotonic() < 60 and not dry:
        note("the service: no time left")
        return
    from tests.integration.conftest import start

    repository = folder / "repository"
    wanted = dict.fromkeys([*((kind, "plain") for kind in KINDS), ("eca", best)])
    models = [_build(folder, repository, kind, graph, dry, end) for kind, graph in wanted]
    running = start(repository, folder)
    try:
        running.await_ready(timeout_s=120)
        image = (ROOT / "build" / "demo" / "images" / "dog-1.jpg").read_bytes()
        yield from load(running.url, models, image, CALLERS if not dry else 2, SECONDS if not dry else 0.5)
    finally:
        running.process.terminate()
        running.process.wait(60)


def _build(folder: Path, repository: Path, kind: str, graph: str, dry: bool, end: float) -> str:
    """Publishes a network with random weights; its name."""
    import torch
    from eca_build.networks import create, with_formula

    torch.manual_seed(0)
    arch, classes = ("resnet20_cifar", 10) if dry else ("resnet50", 1000)
    name = f"{arch.replace('_', '-')}-{kind}" + (f"-{graph}" if graph != "plain" else "")
    weights = folder / f"{name}.pth"
    network = create(with_formula(arch, kind, classes))  # type: ignore[arg-type]
    with torch.no_grad():
        network.head.weight.div_(3)  # untrained, its answers would be so sharp that rounding shows
    torch.save(network.state_dict(), weights)
    target, precision = ("onnx", "fp32") if dry else ("inductor", "fp16")
    command = ["compile", str(weights), "--target", target, "--precision", precision, "--attention-graph", graph]
    command += ["--repository", str(repository)]
    done = subprocess.run(
        [sys.executable, "-c", "from eca_build.cli import main; main()", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=max(0, end - time.monotonic()),
    )
    if done.returncode:
        raise RuntimeError(f"eca-build {' '.join(command)}: {done.stderr.strip()[-300:]}")
    return name


def load(url: str, models: Sequence[str], image: bytes, callers: int, seconds: float) -> Iterator[Row]:
    """Images a second and milliseconds of each model, under so many callers that always wait for an answer.

    The models take turns, twice, so that a drifting machine does not favour one. Raises httpx.HTTPError where a call
    fails.
    """
    taken: dict[str, list[float]] = {model: [] for model in models}
    spent = dict.fromkeys(models, 0.0)
    for turn in range(3):  # the first warms up
        for model in models:
            begin = time.monotonic()
            found = _call(f"{url}/v1/models/{model}/classify", image, callers, seconds / (2 if turn else 4))
            if turn:
                taken[model] += found
                spent[model] += time.monotonic() - begin
    for model in models:
        hundredths = statistics.quantiles(taken[model], n=100, method="inclusive")
        row: Row = {"model": model, "callers": callers, "images/s": len(taken[model]) / spent[model]}
        yield row | {"p50 ms": 1e3 * hundredths[49], "p99 ms": 1e3 * hundredths[98], "images": len(taken[model])}


def _call(route: str, image: bytes, callers: int, seconds: float) -> list[float]:
    """Seconds of each call, two of each caller at least."""
    import httpx

    until = time.monotonic() + seconds

    def one(_: int) -> list[float]:
        found: list[float] = []
        with httpx.Client(timeout=30) as client:
            while len(found) < 2 or time.monotonic() < until:
                begin = time.monotonic()
                client.post(route, content=image).raise_for_status()
                found.append(time.monotonic() - begin)
        return found

    with ThreadPoolExecutor(callers) as pool:
        return [seconds for found in pool.map(one, range(callers)) for seconds in found]
