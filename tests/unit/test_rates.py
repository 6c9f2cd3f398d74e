"""Token buckets, on a clock that the test holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from eca_service import metrics
from eca_service.errors import ServiceError
from eca_service.rates import Rates, make_table


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(rates: Rates, account: str = "a") -> int | None:
    """Seconds to wait; None where the request is let in."""
    try:
        rates.require(account)
    except ServiceError as error:
        return error.retry_after_s if error.code == "rate_limited" else -1
    return None


def told() -> float:
    """Requests refused so far, as the metrics say."""
    return metrics.registry.get_sample_value("eca_rejected_total", {"reason": "rate_limited"}) or 0


def test_a_burst_then_the_rate() -> None:
    clock, before = Clock(), told()
    rates = Rates(2, burst=5, now=clock)
    assert [refused(rates) for _ in range(6)] == [None] * 5 + [1]
    clock.now += 0.5
    assert [refused(rates) for _ in range(2)] == [None, 1]
    clock.now += 3600
    assert [refused(rates) for _ in range(6)] == [None] * 5 + [1], "no more than the burst is saved up"
    assert told() - before == 3


def test_further_images_are_owed() -> None:
    clock = Clock()
    rates = Rates(2, burst=5, now=clock)
    assert refused(rates) is None
    rates.charge("a", 19)
    assert refused(rates) == 8, "15 owed and the one for this request, at 2 a second"
    clock.now += 7.9
    assert refused(rates) == 1
    clock.now += 0.1
    assert refused(rates) is None
    clock.now += 3600
    rates.charge("a", 9)
    assert refused(rates) == 3, "what was saved up is the burst, however long ago the last image was"


def test_accounts_are_apart_and_a_second_s_worth_is_the_burst() -> None:
    rates = Rates(0.4, now=Clock())
    assert [refused(rates, name) for name in "aba"] == [None, None, 3]
    assert Rates(2.5).burst == 3


def test_the_table_is_bounded_and_who_owes_most_is_remembered() -> None:
    rates = Rates(1, burst=1, accounts=8, now=Clock())
    assert refused(rates, "busy") is None
    for number in range(100):
        assert refused(rates, f"caller-{number}") is None
        rates.charge("busy", 1)
    assert len(rates._table) == 8 * 16
    assert refused(rates, "busy") == 101


def test_two_processes_count_together(tmp_path: Path) -> None:
    make_table(tmp_path / "table")
    one, other = (Rates(1, burst=4, file=tmp_path / "table") for _ in range(2))
    assert [refused(rates) for rates in (one, other, one, other)] == [None] * 4
    assert [refused(rates) for rates in (one, other)] == [1, 1]
    assert refused(one, "b") is None


def test_thousands_of_accounts_are_apart() -> None:
    rates = Rates(1, burst=1, now=Clock())
    assert {refused(rates, f"10.0.{n >> 8}.{n & 255}") for n in range(5000)} == {None}
    assert {refused(rates, f"10.0.{n >> 8}.{n & 255}") for n in range(5000)} == {1}


@pytest.mark.parametrize("again", range(3))
def test_what_is_refused_costs_nothing(again: int) -> None:
    clock = Clock()
    rates = Rates(1, burst=1, now=clock)
    assert [refused(rates) for _ in range(2 + again)] == [None] + [1] * (1 + again)
    clock.now += 1
    assert refused(rates) is None
