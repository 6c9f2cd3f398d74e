"""Two runs beside each other: what got slower by more than chance and a tolerance can explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.load.intervals import NOTHING, Estimate, unpaired_ratio
from tests.load.measure import Cell

TOLERANCE = 0.05
SAME = ("processor", "cores", "python", "images")


@dataclass(frozen=True)
class Change:
    """New by old of one variant at one level; below 1 throughput, above 1 latency, is worse."""

    variant: str
    level: str
    figure: str
    change: Estimate
    verdict: str  # worse, better, same; unknown where there is no interval, or the load was another


def changes(new: Sequence[Cell], old: Sequence[Cell]) -> list[Change]:
    """All that both runs measured, by throughput of closed load and p50 of every load.

    `worse` and `better` where the whole interval lies beyond TOLERANCE. p50s of open load say something only where as
    much was offered: `offered` has a new run do so.
    """
    before = {(cell.variant, cell.level): cell for cell in old}
    found = []
    for cell in new:
        past = before.get((cell.variant, cell.level))
        if past is None:
            continue
        if cell.offered_per_s is None:
            found.append(_change(cell, "throughput", unpaired_ratio(cell.per_s, past.per_s), worse_below=True))
        if not math.isclose(cell.offered_per_s or 0, past.offered_per_s or 0, rel_tol=TOLERANCE):
            found.append(Change(cell.variant, cell.level, "p50", NOTHING, "unknown"))
            continue
        now, then = ([float(np.median(one)) for one in each.latencies_ms if one] for each in (cell, past))
        found.append(_change(cell, "p50", unpaired_ratio(now, then), worse_below=False))
    return found


def offered(old: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Arrivals a second by backbone and level of an older run, for a new one to be measured under the same."""
    return {(cell.backbone, cell.level): cell.offered_per_s for cell in old if cell.offered_per_s}


def _change(cell: Cell, figure: str, change: Estimate, worse_below: bool) -> Change:
    less, more = change.high < 1 - TOLERANCE, change.low > 1 + TOLERANCE
    verdict = "same" if change.known else "unknown"
    if less or more:
        verdict = "worse" if less == worse_below else "better"
    return Change(cell.variant, cell.level, figure, change, verdict)


def other_machine(new: dict[str, str], old: dict[str, str]) -> str:
    """In words, where the two runs were not made alike; empty where they were."""
    differ = [f"{key}: {old.get(key)} then, {new.get(key)} now" for key in SAME if old.get(key) != new.get(key)]
    return "; ".join(differ)
