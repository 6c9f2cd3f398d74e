"""What a request is told: of its time, and its best classes."""

from __future__ import annotations

import numpy as np
import pytest
from eca_service.answers import Answer, Result, best_classes

from tests.unit.test_contract import CONTRACT


def test_each_stage_is_that_of_the_slowest_image() -> None:
    first, second = Result(decode_s=0.001, queue_s=0.005, infer_s=0.002), Result(decode_s=0.004, queue_s=0.003)
    answer = Answer(CONTRACT, [first, second], 0.02)
    assert answer.milliseconds == {"decode": 4, "queue": 5, "infer": 2, "total": 20}
    assert answer.server_timing() == "decode;dur=4.0, queue;dur=5.0, infer;dur=2.0, total;dur=20.0"


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("values", [2, 5, 1 << 20], ids=["many equal", "some equal", "hardly any equal"])
def test_as_a_stable_sort_of_all_has_them(classes: int, values: int) -> None:
    chance = np.random.default_rng(classes * values)
    for count in (1, 2, 5, classes, classes + 1):
        probabilities = (chance.integers(0, values, classes) / values).astype(np.float32)
        assert best_classes(probabilities, count) == np.argsort(-probabilities, kind="stable")[:count].tolist()
