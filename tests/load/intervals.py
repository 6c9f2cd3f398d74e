"""Figures with the interval that chance alone would give: the bootstrap (Efron 1979) over the rounds of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Statistic = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1, factor: float = 1.0) -> str:
        """`12.3 (11.9 to 12.8)`."""
        value, low, high = (f"{factor * number:.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def over_rounds(rounds: Sequence[Sequence[float]], statistic: Statistic, seed: int = 0) -> Estimate:
    """`statistic` of all values together; its interval from drawing whole rounds anew: within one they hang together.

    Without any value it is NaN.
    """
    filled = [one for one in rounds if len(one)]
    if not filled:
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(filled), (min(RESAMPLES, 300), len(filled)))
    found = [statistic(np.concatenate([filled[i] for i in draw])) for draw in draws]
    return _estimate(statistic(np.concatenate(filled)), found)


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """The geometric mean over the rounds of ours / theirs, which stood side by side in each round."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a > 0 and b > 0]
    if not pairs:
        return Estimate(float("nan"), float("nan"), float("nan"))
    logs = np.log([a / b for a, b in pairs])
    draws = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    return _estimate(float(np.exp(logs.mean())), np.exp(logs[draws].mean(1)))


def unpaired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """The ratio of geometric means of two runs that did not stand side by side."""
    a, b = (np.log([value for value in values if value > 0]) for values in (ours, theirs))
    if not len(a) or not len(b):
        return Estimate(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    drawn = [one[generator.integers(0, len(one), (RESAMPLES, len(one)))].mean(1) for one in (a, b)]
    return _estimate(float(np.exp(a.mean() - b.mean())), np.exp(drawn[0] - drawn[1]))


def percentile(q: float) -> Statistic:
    """The statistic: the q-th percentile, q in 0 to 100."""
    return lambda values: float(np.percentile(values, q))


def mean(values: NDArray[np.float64]) -> float:
    """The statistic: the arithmetic mean."""
    return float(values.mean())


def _estimate(value: float, found: Sequence[float] | NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
