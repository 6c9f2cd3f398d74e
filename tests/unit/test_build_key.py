"""A build whose key is known is not done again: all that decides its result is in the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eca_build import measure
from eca_build.inputs import Options, build_key
from eca_build.targets import Wish
from eca_service.contract import Preprocessing

IMAGES, OTHERS = np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 4, 4, 3), np.uint8)
CLASSES = np.array([0, 1])
OPTIONS = Options(Path("m.pth"), Path("models"))
GIVEN: dict[str, Any] = {
    "checkpoint_sha256": "a",
    "recipe": Preprocessing(),
    "labels": ("cat", "dog"),
    "arrays": (IMAGES, CLASSES, IMAGES),
    "tools": {"torch": "2.11"},
    "options": OPTIONS,
}
CHANGES: list[dict[str, Any]] = [
    {"checkpoint_sha256": "b"},
    {"recipe": Preprocessing(resize=32, crop=32)},
    {"labels": ("dog", "cat")},
    {"arrays": (OTHERS, CLASSES, IMAGES)},
    {"arrays": (IMAGES, CLASSES, OTHERS)},
    {"arrays": (IMAGES, CLASSES, None)},
    {"arrays": (IMAGES, 1 - CLASSES, IMAGES)},
    {"arrays": (IMAGES, None, IMAGES)},
    {"tools": {"torch": "2.12"}},
    {"options": replace(OPTIONS, arch="resnet18")},
    {"options": replace(OPTIONS, attention="se-var1")},
    {"options": replace(OPTIONS, wish=Wish(max_batch=8))},
    {"options": replace(OPTIONS, wish=Wish(precision="auto"))},
]


def test_whatever_changes_the_result_changes_the_key() -> None:
    keys = [build_key(**GIVEN | change) for change in ({}, *CHANGES)]
    assert len({*keys}) == len(keys)
    elsewhere = replace(OPTIONS, checkpoint=Path("copy.pth"), repository=Path("others"))
    assert build_key(**GIVEN | {"options": elsewhere}) == keys[0]


@pytest.mark.parametrize(("precision", "same"), [("fp32", True), ("auto", False)])
def test_what_is_fastest_is_found_on_each_machine(monkeypatch: pytest.MonkeyPatch, precision: Any, same: bool) -> None:
    given = GIVEN | {"options": replace(OPTIONS, wish=Wish(precision=precision))}
    here = build_key(**given)
    monkeypatch.setattr(measure, "machine", lambda: "another")
    assert (build_key(**given) == here) == same
