"""Versions that are refused, and those that are not held against."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from eca_service import metrics
from eca_service.errors import ServiceError
from eca_service.registry import Registry
from eca_service.rollout import Rollout
from eca_service.triton.failures import NotLoaded

from tests.unit.test_registry import published


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """Of one model in one version; there is nothing that runs it."""
    published(tmp_path, "refused")
    nothing: Any = None
    return Rollout(Registry(tmp_path, None), nothing, nothing, keep_s=0)


def told() -> float | None:
    found: float | None = metrics.registry.get_sample_value("eca_model_refused", {"model": "refused", "version": "1"})
    return found


async def test_a_refused_version_is_told_until_it_is_golden_after_all(
    rollout: Rollout, caplog: pytest.LogCaptureFixture
) -> None:
    model = rollout._registry.get("refused")
    for error in (ServiceError("internal", "it answers otherwise"),) * 2 + (ValueError("odd"),):
        assert await rollout.refuse(model, error)
        assert told() == 1
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        ("refused version 1 is refused: it answers otherwise", False),
        ("refused version 1 is refused: the check failed: ValueError('odd')", True),
    ]
    assert not rollout._versions(model.folder.parent), "Triton need not hold it"
    rollout.accept(model.folder)
    assert told() is None
    assert rollout._versions(model.folder.parent) == {1}
    rollout.accept(model.folder)
    with caplog.at_level(logging.ERROR):
        caplog.clear()
        assert await rollout.refuse(model, ValueError("odd"))
        assert len(caplog.records) == 1, "it is another time"
    rollout.accept(model.folder)


async def test_one_that_fails_for_days_is_still_refused(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    for _ in range(1200):  # 2 ** 1024 is no float
        assert await rollout.refuse(model, ServiceError("internal", "it answers otherwise"))
    assert rollout.was_refused(model.folder)
    rollout.accept(model.folder)


async def test_what_is_no_fault_of_the_version_is_not_held_against_it(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    for error in (NotLoaded("model_not_ready", "it was unloaded"), ServiceError("overloaded", "Triton is busy")):
        assert not await rollout.refuse(model, error)
    assert told() is None


async def test_a_refused_version_is_another_one_when_its_files_change(rollout: Rollout) -> None:
    model = rollout._registry.get("refused")
    await rollout.refuse(model, ValueError("odd"))
    await rollout.follow()
    assert told() == 1
    (model.folder / "golden.npy").touch()
    await rollout.follow()
    assert told() is None
