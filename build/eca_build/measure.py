"""How fast engines are on this machine, as served: measured together, in a new process.

    python -m eca_build.measure ENGINES.json IMAGES.npy RATES.npy

is that process. Blocks of a fraction of a second alternate between the engines in an order that is drawn anew each
round, so that whatever else the machine does meets all of them alike, and what is compared is the ratio within a round.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from eca_service.cgroups import cores
from numpy.typing import NDArray

from eca_build import processes
from eca_build.provenance import processor
from eca_build.scratch import scratch
from eca_build.sessions import Kind, Session, open_session

BATCHES = (1, 8, 32)
BLOCK_S = 0.04
LEAST_ROUNDS, MOST_ROUNDS = 3, 7
ROUND_S = 1.0
DECIDING = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Runnable:
    """An engine on disk and how it is opened, see `sessions.open_session`."""

    kind: Kind
    precision: str
    file: str


@dataclass(frozen=True)
class Speed:
    """Images per second by batch, the median of the rounds; `relative` to the first engine that was measured.

    `relative` is the geometric mean over the batches of the median ratio: lone requests count as much as full batches.
    """

    images_per_s: dict[int, float]
    relative: float


def machine() -> str:
    """The processor, its cores and the instructions on which the speed of integers and bfloat16 depends."""
    flags = processor("flags").split()
    kinds = " ".join(kind for kind in DECIDING if kind in flags)
    return f"{processor('model name') or 'unknown processor'}, {cores()} cores, {kinds or 'no AVX2'}"


def measure(
    engines: Sequence[Runnable],
    images: NDArray[np.uint8],
    max_batch: int,
    streams: int = 1,
    rounds: int = MOST_ROUNDS,
) -> list[Speed]:
    """The speed of each engine on `images`, uint8 [N, H, W, 3], at those of BATCHES that `max_batch` allows.

    All cores are used: by one session of each engine, or by `streams` sessions at once with a part of the cores each.
    Ends after `rounds`, or after a few where they take long. Raises BuildError as `processes.run` where it fails.
    """
    batches = [batch for batch in BATCHES if batch <= max_batch]
    with scratch("measure") as folder:
        plan, source, target = (folder / name for name in ("engines.json", "images.npy", "rates.npy"))
        asked = {"batches": batches, "streams": streams, "rounds": rounds}
        plan.write_text(json.dumps(asked | {"engines": [asdict(engine) for engine in engines]}))
        np.save(source, images[np.arange(max(batches)) % len(images)])
        command = [*processes.module("eca_build.measure"), str(plan), str(source), str(target)]
        if len(engines) == 1:
            processes.run(command, "the engine could not be measured")
        else:
            processes.run(command, "the engines could not be measured", _told)
        return speeds(np.load(target), batches)


def _told(written: str, status: int) -> str:
    """All are open at once, and one may end the process: without a choice nothing is measured."""
    return f"{processes.last_line(written, status)}; name one, by --precision, --runtime and --attention-graph"


def speeds(rates: NDArray[np.float64], batches: Sequence[int]) -> list[Speed]:
    """From images per second [rounds, engines, batches]."""
    ratios = np.median(rates / rates[:, :1], axis=0)
    relative = np.exp(np.log(ratios).mean(1))
    medians = np.median(rates, axis=0)
    return [
        Speed({batch: float(f"{rate:.4g}") for batch, rate in zip(batches, row, strict=True)}, float(one))
        for row, one in zip(medians, relative, strict=True)
    ]


def _run(plan_file: str, source: str, target: str) -> None:
    plan = json.loads(Path(plan_file).read_text())
    images, streams = np.load(source), plan["streams"]
    threads = max(1, cores() // streams)
    with ThreadPoolExecutor(streams) as pool:
        engines = [
            [open_session(one["kind"], one["precision"], Path(one["file"]), threads) for _ in range(streams)]
            for one in plan["engines"]
        ]
        blocks = [
            (engine, batch, _block(sessions, np.ascontiguousarray(images[: plan["batches"][batch]]), pool))
            for engine, sessions in enumerate(engines)
            for batch in range(len(plan["batches"]))
        ]
        for *_, block in blocks:
            block()  # a first run at each shape prepares it
        order, rounds = random.Random(0), list[NDArray[np.float64]]()
        end = time.perf_counter() + plan["rounds"] * ROUND_S
        while len(rounds) < LEAST_ROUNDS or (len(rounds) < plan["rounds"] and time.perf_counter() < end):
            rates = np.zeros((len(engines), len(plan["batches"])))
            for engine, batch, block in order.sample(blocks, len(blocks)):
                rates[engine, batch] = block()
            rounds.append(rates)
    np.save(target, np.stack(rounds))


def _block(sessions: list[Session], images: NDArray[np.uint8], pool: ThreadPoolExecutor) -> Callable[[], float]:
    """A function that runs all sessions side by side for BLOCK_S, at least once each: images per second."""

    def runs(session: Session, end: float) -> int:
        count = 0
        while not count or time.perf_counter() < end:
            session(images)
            count += 1
        return count

    def block() -> float:
        start = time.perf_counter()
        counts = pool.map(runs, sessions, [start + BLOCK_S] * len(sessions))
        return sum(counts) * len(images) / (time.perf_counter() - start)

    return block


if __name__ == "__main__":
    _run(*sys.argv[1:])
