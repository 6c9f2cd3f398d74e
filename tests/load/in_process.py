"""The limit: decode and infer in a loop, with no server around, on every core; and the engine alone."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from tests.load.peer_service import pixels, session


@dataclass(frozen=True)
class Order:
    """What the loops are to do: for `seconds`, images decoded or not, `batch` at once."""

    seconds: float
    decode: bool = True
    batch: int = 1


class Loops:
    """`processes` processes of one engine of `threads` threads each, which wait for orders; use it as a context."""

    def __init__(self, model: str, images: Sequence[bytes], processes: int, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for index in range(processes):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_loop, args=(theirs, model, list(images), threads, index), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            end.recv()

    def run(self, order: Order) -> tuple[float, list[float], float]:
        """Images a second of all together, the seconds of each pass, and processor seconds for an image."""
        for end in self._ends:
            end.send(order)
        answers = [end.recv() for end in self._ends]
        passes = [spent for *_, each in answers for spent in each]
        return (
            sum(rate for rate, *_ in answers),
            passes,
            sum(used for _, used, _ in answers) / len(passes) / order.batch,
        )

    def __enter__(self) -> Loops:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _loop(end: Connection, model: str, images: list[bytes], threads: int, seed: int) -> None:
    engine = session(model, threads)
    ready = [pixels(one) for one in images[:16]]
    chance = np.random.default_rng(seed)
    end.send("ready")
    while order := end.recv():
        began, done, used, passes = time.perf_counter(), 0, time.process_time(), []
        while (started := time.perf_counter()) - began < order.seconds:
            picks = chance.integers(0, len(images), order.batch)
            rows = [pixels(images[i]) if order.decode else ready[i % len(ready)] for i in picks]
            engine.run(["probabilities"], {"image": np.stack(rows)})
            passes.append(time.perf_counter() - started)
            done += order.batch
        end.send((done / (time.perf_counter() - began), time.process_time() - used, passes))
