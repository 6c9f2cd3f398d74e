"""What a classification answers, whatever protocol carries it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eca_service.contract import Contract
from eca_service.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image; `score` is its probability in [0, 1]."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Result:
    """One image's answer: predictions, best first, or the error that this image alone met; and its stages' seconds."""

    predictions: tuple[Prediction, ...] = ()
    warnings: tuple[str, ...] = ()
    error: ServiceError | None = None
    decode_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What one request gets; the stages' times are those of its slowest image, the total is since the request came."""

    contract: Contract
    results: list[Result]
    total_s: float

    @cached_property  # in the body and in a header
    def milliseconds(self) -> dict[str, float]:
        """decode, queue, infer, total, in milliseconds."""
        stages = {
            "decode": max(result.decode_s for result in self.results),
            "queue": max(result.queue_s for result in self.results),
            "infer": max(result.infer_s for result in self.results),
            "total": self.total_s,
        }
        return {name: round(1000 * seconds, 3) for name, seconds in stages.items()}

    def server_timing(self) -> str:
        """The same as the value of a Server-Timing header (W3C)."""
        return ", ".join(f"{stage};dur={spent}" for stage, spent in self.milliseconds.items())


def best_classes(probabilities: NDArray[np.float32], count: int) -> list[int]:
    """The `count` likeliest of K classes, of equals the first, from `probabilities` [K]; all where K is less.

    To sort all of 21,841 takes 1.5 ms, this 0.04.
    """
    count = min(count, len(probabilities))
    least = np.partition(probabilities, -count)[-count]
    found = np.flatnonzero(probabilities >= least)
    best: list[int] = found[np.argsort(-probabilities[found], kind="stable")[:count]].tolist()
    return best
