"""The soak's short form, and that its verdict sees what it is there to see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.load.soak import Findings, Held, soak, verdict

HELD = Held(descriptors=20, threads=10, tasks=5, requests=0, shared=1, temporary=3)


def findings(memory_kib: list[float], last: Held = HELD) -> Findings:
    """Samples a second apart, a first and a last pause, and one valid answer."""
    samples = [(second / 60, kib) for second, kib in enumerate(memory_kib)]
    return Findings(samples, [HELD, last], Counter({("valid", "ok"): 1}))


def test_verdict() -> None:
    flat = [100_000.0] * 100
    assert verdict(findings(flat)) == []
    assert verdict(findings([50_000.0 + 1000 * n for n in range(50)] + flat)) == [], "it may grow at first"
    assert "memory grew" in verdict(findings([100_000.0 + 300 * n for n in range(100)]))[0]
    for what in ("descriptors", "threads", "tasks", "requests", "shared", "temporary"):
        assert what in verdict(findings(flat, replace(HELD, **{what: 99})))[0]
    wrong = findings(flat)
    wrong.wrong += ["valid: internal"] * 2
    wrong.answers.clear()
    assert verdict(wrong) == ["2 times valid: internal", "no valid image was classified"]


@pytest.mark.soak
def test_nothing_grows_and_nothing_is_left(repository: Path) -> None:
    """`make soak` does so for half an hour."""
    lines: list[str] = []
    assert soak(repository, 1.0, lines.append) == [], "\n".join(lines)
