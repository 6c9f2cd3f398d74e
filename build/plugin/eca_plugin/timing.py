"""How long work takes on a GPU: launches captured as one CUDA graph, replayed between events."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Launch = Callable[[], object]
WARM_UP = 3
LEAST_S = 2e-3  # of a sample: an idle GPU waits for the first replay, some ten microseconds that are not the launches'


class CaptureError(Exception):
    """What was to be timed cannot be captured; PyTorch's allocator then lets this process capture nothing more."""


@dataclass(frozen=True)
class Spread:
    """Seconds of one launch: the median, and the tenth and ninetieth of a hundred."""

    p50: float
    p10: float
    p90: float


def spread(samples: Sequence[float]) -> Spread:
    """The spread of seconds that were measured, at least one."""
    if len(samples) < 2:
        return Spread(samples[0], samples[0], samples[0])
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return Spread(statistics.median(samples), tenths[0], tenths[-1])


class Timed:
    """Launches that are timed together, in the order given; each works on memory of its own, so that caches are cold.

    Without a GPU they run as they are, and a sample says no more than that they ran. Raises CaptureError.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.launches = launches
        self.replays = 1
        self.graph: torch.cuda.CUDAGraph | None = None
        if not torch.cuda.is_available():
            return
        side = torch.cuda.Stream()
        torch.cuda.synchronize()  # what made the tensors ran on another stream
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                launches[0]()  # compiles, loads modules, fills the allocator: none of it may happen in a capture
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=side):
                for launch in launches:
                    launch()
        except Exception as error:
            first = error.__context__ or error  # before the one that says that the capture is broken off
            raise CaptureError(f"it runs, and cannot be captured as a CUDA graph: {first}") from error
        self.sample()
        self.replays = max(1, math.ceil(LEAST_S / (self.sample() * len(launches))))

    def sample(self) -> float:
        """Seconds of one launch, the mean of so many replays of all that they take LEAST_S."""
        if self.graph is None:
            start = time.perf_counter()
            for launch in self.launches:
                launch()
            return (time.perf_counter() - start) / len(self.launches)
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(self.replays):
            self.graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000 / self.replays / len(self.launches)

    def samples(self, seconds: float) -> list[float]:
        """As many samples as fit into `seconds`, at least one."""
        end = time.perf_counter() + seconds
        found = [self.sample()]
        while time.perf_counter() < end:
            found.append(self.sample())
        return found


def copy_bandwidth(bytes_: int = 1 << 30, seconds: float = 0.5) -> float:
    """Bytes a second, read and written, of a copy within the memory of the current device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randint(0, 255, (bytes_,), dtype=torch.uint8, device=device)
    target: Tensor = torch.empty_like(source)
    return 2 * bytes_ / spread(Timed([lambda: target.copy_(source)]).samples(seconds)).p50
