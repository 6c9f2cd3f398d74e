"""The soak's short form, and that its verdict sees what it is there to see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.load.soak import Findings, Held, soak, verdict

HELD = Held(descriptors=20, threads=10, tasks=5, requests=0, shared=1, temporary=3)


def findings(memory_kib: list[float], last: Held = HELD) -> Findings:
    """Memory in each pause, what is held in the first and the last, and one valid answer."""
    return Findings(memory_kib, [HELD, last], Counter({("valid", "ok"): 1}))


def test_verdict() -> None:
    flat = [100_000.0] * 30
    assert verdict(findings(flat)) == []
    assert verdict(findings([50_000.0 + 5000 * n for n in range(10)] + flat)) == [], "it may grow at first"
    assert verdict(findings([*flat[:-1], 200_000.0])) == [], "one outlier is none"
    assert "memory grew" in verdict(findings([100_000.0 + 1000 * n for n in range(30)]))[0]
    for what in ("descriptors", "threads", "tasks", "requests", "shared", "temporary"):
        assert what in verdict(findings(flat, replace(HELD, **{what: 99})))[0]
    wrong = findings(flat)
    wrong.wrong += ["valid: internal"] * 2
    wrong.answers.clear()
    assert verdict(wrong) == ["2 times valid: internal", "no valid image was classified"]


@pytest.mark.soak
def test_nothing_grows_and_nothing_is_left(repository: Path) -> None:
    """`make soak` does so for half an hour, with shorter pauses, which would leave the other tests no room."""
    lines: list[str] = []
    assert soak(repository, 1.25, lines.append, pause_s=0.1) == [], "\n".join(lines)
