"""How often a model is right on images whose classes are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TOP = 5


@dataclass
class Evaluation:
    """One model's counts: `counts` holds how many images of one class were called another, by both their indices.

    Only what occurred is there: of 21,841 classes a matrix would have half a billion numbers.
    """

    model: str
    labels: Sequence[str]
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    true: Counter[int] = field(default_factory=Counter)  # images of each class
    called: Counter[int] = field(default_factory=Counter)  # images that each class was answered for
    in_top: int = 0

    def add(self, truth: int, answered: Sequence[int]) -> None:
        """Counts one image of class `truth`; `answered` are the classes, best first, at least TOP where there are."""
        self.counts[truth, answered[0]] += 1
        self.true[truth] += 1
        self.called[answered[0]] += 1
        self.in_top += truth in answered[:TOP]

    @property
    def images(self) -> int:
        """How many were answered."""
        return self.true.total()

    @property
    def top1(self) -> float:
        """Share of images, in [0, 1], whose best class is the true one; 0 of none."""
        return sum(self.counts[index, index] for index in self.true) / max(1, self.images)

    @property
    def top5(self) -> float:
        """Share of images, in [0, 1], whose true class is among the best five."""
        return self.in_top / max(1, self.images)

    @property
    def occurring(self) -> list[int]:
        """The classes that an image is of or was taken for, ascending."""
        return sorted(self.true.keys() | self.called.keys())

    def recall(self, index: int) -> float:
        """Share of the images of class `index`, in [0, 1], that are found."""
        return self.counts[index, index] / max(1, self.true[index])

    def precision(self, index: int) -> float:
        """Share of the images that are called class `index`, in [0, 1], that are of it."""
        return self.counts[index, index] / max(1, self.called[index])

    def mistaken_for(self, index: int) -> int | None:
        """The class that images of class `index` are most often taken for, None where all are found."""
        others = {one: count for (truth, one), count in self.counts.items() if truth == index != one}
        return min(others, key=lambda one: (-others[one], one), default=None)

    def confusion(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """The matrix of these n classes, int64 [n, n]: a row for each true one, a column for each answered."""
        place = {index: number for number, index in enumerate(classes)}
        matrix = np.zeros((len(place), len(place)), np.int64)
        for (truth, answered), count in self.counts.items():
            if truth in place and answered in place:
                matrix[place[truth], place[answered]] = count
        return matrix
