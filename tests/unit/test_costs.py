"""What is learnt of an engine's time, and how large batches are because of it."""

from __future__ import annotations

import pytest
from eca_service.costs import SHORT_S, TRIED_AGAIN, Costs


def test_costs_of_sizes_not_seen() -> None:
    costs = Costs()
    assert costs.seconds(8) == 0
    costs.learn(16, 1.6)
    costs.learn(4, 0.4)
    assert costs.seconds(1) == costs.seconds(8) == pytest.approx(0.4)
    costs.learn(1, 0.1)
    assert [costs.seconds(size) for size in (1, 2, 3, 4, 32)] == pytest.approx([0.1, 0.1, 0.4, 0.4, 1.6])
    for _ in range(100):
        costs.learn(1, 0.2)
    assert costs.seconds(1) == pytest.approx(0.2, rel=0.01)


def test_an_image_of_sizes_not_seen_takes_what_it_took() -> None:
    """Not a share of what a smaller batch took: a large request would be due at several times the engine's pace."""
    costs = Costs()
    assert costs.each(8) == 0
    costs.learn(6, 0.6)
    assert costs.each(32) == costs.each(1) == pytest.approx(0.1)
    costs.learn(1, 0.2)
    assert [costs.each(size) for size in (1, 4, 5, 32)] == pytest.approx([0.2, 0.2, 0.1, 0.1])


def served(costs: Costs, fixed: float, each: float, batches: int, most: int = 32) -> list[int]:
    """The sizes of `batches` batches of an engine that takes `fixed` seconds and `each` more an image, always busy."""
    sizes = []
    for _ in range(batches):
        sizes.append(costs.worthwhile(most))
        costs.learn(sizes[-1], fixed + each * sizes[-1])
    return sizes


def test_where_images_cost_nothing_more_batches_grow_to_the_largest() -> None:
    assert served(Costs(), fixed=1.0, each=0.0, batches=8) == [1, 2, 4, 8, 16, 32, 32, 32]
    assert served(Costs(), fixed=1.0, each=0.0, batches=8, most=12)[-1] == 12


def test_where_each_image_takes_its_time_batches_stay_small() -> None:
    sizes = served(Costs(), fixed=0.01, each=0.1, batches=50)
    assert sizes[:3] == [1, 2, 1], "two were tried, and were no faster, image by image"
    assert set(sizes[2:]) == {1}
    assert set(served(Costs(), fixed=0.04, each=0.1, batches=50)[10:]) == {4}


def test_short_batches_spare_calls_though_the_engine_saves_nothing() -> None:
    assert set(served(Costs(), fixed=0.0, each=SHORT_S / 8, batches=50)[10:]) == {8}
    assert set(served(Costs(), fixed=0.0, each=SHORT_S / 7, batches=50)[10:]) == {4}


def test_what_was_once_slow_is_tried_again() -> None:
    costs = Costs()
    served(costs, fixed=0.0, each=0.1, batches=10)
    assert costs.worthwhile(32) == 1
    sizes = served(costs, fixed=0.1, each=0.0, batches=6 * TRIED_AGAIN)
    assert sizes[-1] == 32
