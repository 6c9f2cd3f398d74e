"""How soon a thread that is woken runs on this machine: what each hop of an image from thread to thread costs.

    python -m tests.load.handover

A kernel may wake a thread on the core of who wakes it though another idles, and a virtual machine's idle core may take
long to wake. Both cost a service of many threads more than a loop.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import click
import numpy as np

PAUSE_S = 0.003  # between two hops: idle cores have gone to sleep
WORK_S = 0.003  # of whoever is woken: an image's decoding


def hops(
    count: int, worked_s: float, works_on_s: float, cores: tuple[int | None, int | None] = (None, None)
) -> tuple[float, float]:
    """Milliseconds until the woken process runs, in the median, and the share of times on its waker's core.

    Whoever wakes it has worked for `worked_s` and works on for `works_on_s`; the waker and the woken are pinned to
    `cores`, where given. Raises EOFError where the woken process dies.
    """
    before = os.sched_getaffinity(0)
    here, there = multiprocessing.Pipe()
    woken = multiprocessing.get_context("spawn").Process(target=_woken, args=(there, count, cores[1]), daemon=True)
    woken.start()
    there.close()  # so that its end is noticed
    sent = []
    try:
        here.recv()
        if cores[0] is not None:
            os.sched_setaffinity(0, {cores[0]})
        for _ in range(count):
            time.sleep(PAUSE_S + WORK_S)
            _work(worked_s)
            sent.append((time.monotonic_ns(), _core()))
            here.send_bytes(b"x")
            _work(works_on_s)
        began = here.recv()
    finally:
        os.sched_setaffinity(0, before)
        woken.join(5)
        woken.kill()
        here.close()
    late = [(there_ns - here_ns) / 1e6 for (here_ns, _), (there_ns, _) in zip(sent, began, strict=True)]
    return float(np.median(late)), float(np.mean([a == b for (_, a), (_, b) in zip(sent, began, strict=True)]))


def _woken(end: Connection, count: int, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    began = []
    end.send("ready")
    for _ in range(count):
        end.recv_bytes()
        began.append((time.monotonic_ns(), _core()))
        _work(WORK_S)
    end.send(began)


def _work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _core() -> int:
    with open("/proc/thread-self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[36])


@click.command(context_settings={"show_default": True})
@click.option("--count", type=click.IntRange(3, 10_000), default=200, help="Wake-ups measured of each kind.")
def main(count: int) -> None:
    """Prints how late a woken process begins."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.ClickException("this needs two cores")
    for worked_s, works_on_s in ((0.0, 0.0), (0.0, 0.001), (0.003, 0.001)):
        late_ms, same = hops(count, worked_s, works_on_s)
        click.echo(
            f"Woken by who has worked for {1000 * worked_s:.0f} ms and works on for {1000 * works_on_s:.0f} ms: "
            f"begins after {late_ms:.3f} ms, in {100 * same:.0f} % on its waker's core."
        )
    late_ms, _ = hops(count, 0.003, 0.001, (cores[0], cores[1]))
    click.echo(f"Pinned to another core, which idles: begins after {late_ms:.3f} ms.")


if __name__ == "__main__":
    main()
