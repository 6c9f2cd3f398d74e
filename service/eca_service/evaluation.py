"""How often a model is right on images whose classes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TOP = 5


@dataclass
class Evaluation:
    """One model's counts: `confusion` int64 [K, K], a row for each true class, a column for each class answered."""

    model: str
    labels: Sequence[str]
    confusion: NDArray[np.int64] = field(init=False)
    in_top: int = 0

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.labels), len(self.labels)), np.int64)

    def add(self, truth: int, answered: Sequence[int]) -> None:
        """Counts one image of class `truth`; `answered` are the classes, best first, at least TOP where there are."""
        self.confusion[truth, answered[0]] += 1
        self.in_top += truth in answered[:TOP]

    @property
    def images(self) -> int:
        """How many were answered."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of images, in [0, 1], whose best class is the true one; 0 of none."""
        return float(np.trace(self.confusion)) / max(1, self.images)

    @property
    def top5(self) -> float:
        """Share of images, in [0, 1], whose true class is among the best five."""
        return self.in_top / max(1, self.images)

    def recall(self, index: int) -> float:
        """Share of the images of class `index`, in [0, 1], that are found."""
        return float(self.confusion[index, index]) / max(1, int(self.confusion[index].sum()))

    def precision(self, index: int) -> float:
        """Share of the images that are called class `index`, in [0, 1], that are of it."""
        return float(self.confusion[index, index]) / max(1, int(self.confusion[:, index].sum()))

    def mistaken_for(self, index: int) -> int | None:
        """The class that images of class `index` are most often taken for, None where all are found."""
        row = self.confusion[index].copy()
        row[index] = 0
        return int(row.argmax()) if row.any() else None
