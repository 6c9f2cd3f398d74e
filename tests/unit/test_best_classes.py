"""The best classes of an answer."""

from __future__ import annotations

import numpy as np
import pytest
from eca_service.answers import best_classes


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("values", [2, 5, 1 << 20], ids=["many equal", "some equal", "hardly any equal"])
def test_as_a_stable_sort_of_all_has_them(classes: int, values: int) -> None:
    chance = np.random.default_rng(classes * values)
    for count in (1, 2, 5, classes, classes + 1):
        probabilities = (chance.integers(0, values, classes) / values).astype(np.float32)
        assert best_classes(probabilities, count) == np.argsort(-probabilities, kind="stable")[:count].tolist()
