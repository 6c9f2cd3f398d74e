"""Permits: bounded by images and by bytes, and given back."""

from __future__ import annotations

import pytest
from eca_service import metrics
from eca_service.admission import TAKEN_ON_TRUST, Admission, Margin
from eca_service.errors import ServiceError
from eca_service.journal import Entry


def told(metric: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(metric, labels) or 0


def refused() -> float:
    return told("eca_rejected_total", reason="overloaded")


def test_bounds() -> None:
    house, before = Admission(max_images=3, max_bytes=100), refused()
    first = house.enter(60, Entry("http"))
    with pytest.raises(ServiceError, match="overloaded"):
        house.enter(50, Entry("http"))
    second = house.enter(40, Entry("http"))
    with pytest.raises(ServiceError, match="overloaded"):
        first.grow(images=2)
    first.grow(images=1)
    with pytest.raises(ServiceError, match="overloaded"):
        house.enter(0, Entry("http"))
    assert (told("eca_inflight"), refused() - before) == (2, 3)
    first.release()
    assert (house.images, house.size, house.requests) == (1, 40, 1)
    second.release()
    assert (house.images, house.size, house.requests) == (0, 0, 0)
    assert told("eca_inflight") == 0


def test_an_unannounced_body_is_covered_as_it_comes() -> None:
    house = Admission(max_images=1, max_bytes=100)
    permit = house.enter(0, Entry("http"))
    for size, held in ((30, 30), (60, 60), (20, 60), (100, 100)):
        permit.cover(size)
        assert (house.images, house.size) == (1, held)
    with pytest.raises(ServiceError, match="overloaded"):
        permit.cover(101)
    permit.release()
    assert house.size == 0


def test_a_large_body_that_is_only_announced_takes_a_part() -> None:
    house = Admission(max_images=9, max_bytes=2 * TAKEN_ON_TRUST)
    permits = [house.enter(32 << 20, Entry("http")) for _ in range(2)]
    with pytest.raises(ServiceError, match="overloaded"):
        permits[0].cover(TAKEN_ON_TRUST + 1)
    assert house.size == 2 * TAKEN_ON_TRUST


def test_answers_that_nobody_takes_give_way() -> None:
    (house, cut), before = (Admission(max_images=9, max_bytes=100), list[int]()), refused()
    with house.answering(60, lambda: cut.append(1)), house.answering(40, lambda: cut.append(2)):
        assert (house.size, cut) == (100, [])
        with house.answering(50, lambda: cut.append(3)):
            assert (house.size, cut) == (90, [1])
            permit = house.enter(60, Entry("http"))
            assert (house.size, cut) == (60, [1, 2, 3])
            with house.answering(200, lambda: cut.append(4)):
                assert house.size == 260, "one that is there is sent, however large"
            permit.release()
    assert (house.size, cut, refused() - before) == (0, [1, 2, 3], 3)


def test_answers_do_not_give_way_to_what_is_refused_all_the_same() -> None:
    house, cut = Admission(max_images=1, max_bytes=100), []
    with house.answering(40, lambda: cut.append(1)):
        first = house.enter(50, Entry("http"))
        for size in (30, 60):  # no room for its image, and then none for its bytes either
            with pytest.raises(ServiceError, match="no room"):
                house.enter(size, Entry("http"))
        with pytest.raises(ServiceError, match="no room"):
            first.grow(size=60)
        assert cut == []
        first.grow(size=20)
        assert cut == [1]
        first.release()


def test_a_margin_for_one_late_answer_in_a_hundred() -> None:
    margin = Margin()
    for late, share in ((True, Margin.LEAST), (False, Margin.MOST)):
        for _ in range(1000):
            margin.learn(late)
        assert margin.share == share
    for index in range(10_000):
        margin.learn(late=index % 10 == 0)
    assert margin.share < 0.5, "one in ten is too many"
    for index in range(10_000):
        margin.learn(late=index % 200 == 0)
    assert margin.share > 0.75, "one in two hundred is not"
