"""Good and bad traffic over all protocols for a long time, and then: has anything been left?

    python -m tests.load.soak [--minutes 30] [--repository model_repository]

Callers: valid images, corrupt ones, images that are too large in bytes or pixels, some that hang up in the middle, some
whose deadline cannot be met, some that speak no HTTP; over REST, OIP JSON and binary, and gRPC. Whenever the traffic
pauses: the gateway's resident memory, file descriptors, threads, asyncio tasks, shared memory, temporary files. Exit
code 0 where nothing grew, no answer was wrong and nothing is left when the service has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

from tests.integration.conftest import FRESH, ROOT, Service, start
from tests.load.measure import end_on_sigterm
from tests.load.traffic import Traffic

# Has every Python process of the service tell, when it is asked by SIGUSR1, how many asyncio tasks it has.
TELLER = """
import asyncio, gc, os, signal
def tell(*_):
    tasks = sum(isinstance(one, asyncio.Task) and not one.done() for one in gc.get_objects())
    with open(os.path.join(os.path.dirname(__file__), "tasks"), "w") as file:
        file.write(str(tasks))
signal.signal(signal.SIGUSR1, tell)
"""
NOISE_KIB = 8 << 10  # of memory, where it ran for long
FILLING_KIB = 12 << 10  # in the first minutes, while pools and caches still fill
SLACK = {"descriptors": 3, "threads": 2, "tasks": 0, "requests": 0, "shared": 2, "temporary": 0}
LOGS = ROOT / ".cache" / "soak"  # of the service under the last run's traffic


@dataclass
class Held:
    """What the service holds while nobody calls."""

    descriptors: int
    threads: int
    tasks: int
    requests: int
    shared: int
    temporary: int


@dataclass
class Findings:
    """Memory (KiB) and what else is held in each pause, and the answers by what was asked."""

    memory: list[float] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def memory_kib(pid: int) -> int:
    """Resident memory of one process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def quiet_kib(pid: int) -> int:
    """The least of several looks: large images that nobody waits for any more may still be being decoded."""
    looks = []
    for _ in range(4):
        looks.append(memory_kib(pid))
        time.sleep(0.25)
    return min(looks)


def held(service: Service, folder: Path) -> Held:
    """Counted once the traffic's connections are gone."""
    pid = service.process.pid
    settled, end = -1, time.monotonic() + 20
    while (now := len(list(Path(f"/proc/{pid}/fd").iterdir()))) != settled and time.monotonic() < end:
        settled = now
        time.sleep(1)
    inflight = re.search(r"^eca_inflight (\S+)", FRESH.get(service.url + "/metrics").text, re.MULTILINE)
    assert inflight
    return Held(
        descriptors=settled,
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        tasks=tasks_of(pid, folder / "tasks"),
        requests=int(float(inflight[1])),
        shared=len(list(Path("/dev/shm").glob(f"eca_*_{pid}_*"))),
        temporary=len(list((folder / "tmp").rglob("*"))),
    )


def tasks_of(pid: int, told: Path) -> int:
    """asyncio tasks of a process: the fewest of several looks, for some come and go."""
    looks = []
    for _ in range(3):
        told.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + 10
        while not (told.exists() and told.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        looks.append(int(told.read_text()))
        time.sleep(0.2)
    return min(looks)


def growth_kib(samples: list[float]) -> float:
    """By how much memory grew from the middle third to the last, by their medians; the first fills caches and pools."""
    third = max(1, len(samples) // 3)
    return statistics.median(samples[-third:]) - statistics.median(samples[-2 * third : -third] or samples[:1])


def soak(repository: Path, minutes: float, report: Callable[[str], None], pause_s: float = 0.02) -> list[str]:
    """What is wrong, in sentences; none where all is well. Each of CALLERS pauses for `pause_s` between requests."""
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="eca-soak-") as name:
        folder, scratch = Path(name), Path(name) / "tmp"
        scratch.mkdir()
        (folder / "sitecustomize.py").write_text(TELLER)
        before = os.environ.copy()
        path = os.pathsep.join(filter(None, (str(folder), before.get("PYTHONPATH"))))
        changed = {"TMPDIR": str(scratch), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ.update(changed)
        try:
            service = start(repository, folder, max_body_bytes=4 << 20, keep_alive_ms=500)
        finally:
            os.environ.clear()
            os.environ.update(before)
        children: list[int] = []
        try:
            service.await_ready()
            traffic = Traffic(service, found.answers, found.wrong, pause_s)
            traffic.run(min(20.0, 15 * minutes))  # pools and caches fill
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end or len(found.held) < 6:
                traffic.run(min(60.0, 10 * minutes))
                found.held.append(held(service, folder))
                found.memory.append(quiet_kib(service.process.pid))
                report(f"round {len(found.held)}: {found.memory[-1] / 1024:.0f} MiB, {found.held[-1]}")
            children = service.children()
        finally:
            service.process.send_signal(signal.SIGTERM)
            status = service.process.wait(40)
            log = service.log.read_text()
            LOGS.mkdir(parents=True, exist_ok=True)
            for written in filter(Path.exists, (service.log, folder / "triton.log")):  # it may not have come so far
                shutil.copy(written, LOGS)
        wrong = verdict(found, NOISE_KIB if minutes > 10 else FILLING_KIB)
        if restarts := log.count("Triton ended with status"):
            wrong.append(f"Triton was started again {restarts} times")
        if status:
            wrong.append(f"the service ended with status {status}")
        if "Traceback" in log:
            wrong.append("its log has a traceback:\n" + log[log.index("Traceback") :][:2000])
        end = time.monotonic() + 5  # killed ones are gone when the system has buried them
        while (left := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            wrong.append(f"processes are left: {left}")
        if left_files := [path.name for path in scratch.iterdir()]:
            wrong.append(f"temporary files are left: {left_files}")
        if shared := [p.name for p in Path("/dev/shm").glob(f"eca_*_{service.process.pid}_*")]:
            wrong.append(f"shared memory is left: {shared}")
    report(f"memory after the first third: {growth_kib(found.memory):+.0f} KiB")
    for (kind, answer), count in sorted(found.answers.items()):
        report(f"{kind}: {count} times {answer}")
    return wrong


def verdict(found: Findings, noise_kib: int = NOISE_KIB) -> list[str]:
    """What grew, memory by more than `noise_kib`, and what was answered that should not have been."""
    wrong = [f"{found.wrong.count(one)} times {one}" for one in sorted(set(found.wrong))]
    if (grew := growth_kib(found.memory)) > noise_kib:
        wrong.append(f"memory grew by {grew:.0f} KiB after the first third, {noise_kib} are noise")
    first, last = found.held[0], found.held[-1]
    for what, slack in SLACK.items():
        if getattr(last, what) > getattr(first, what) + slack:
            wrong.append(f"{what}: {getattr(first, what)} in the first pause, {getattr(last, what)} in the last")
    if not found.answers["valid", "ok"]:
        wrong.append("no valid image was classified")
    return wrong


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Length of the traffic.")
@click.option(
    "--repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="model_repository",
    show_default=True,
    help="Model repository that is served.",
)
def main(minutes: float, repository: Path) -> None:
    """Runs the service under mixed traffic and says whether anything leaked."""
    end_on_sigterm()
    wrong = soak(repository, minutes, lambda line: click.echo(line, err=True))
    for sentence in wrong:
        click.echo(f"Wrong: {sentence}")
    if wrong:
        click.echo(f"The service's logs are in {LOGS}.")
    if not wrong:
        click.echo(f"After {minutes:g} minutes of mixed traffic nothing has grown and nothing is left.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
