"""A class is named by a number or a name, and what is near is offered."""

from __future__ import annotations

import pytest
from eca_service.errors import ServiceError
from eca_service.labels import class_index

LABELS = ("tench, Tinca tinca", "crane", "hammer", "crane", "7")


@pytest.mark.parametrize(
    ("wanted", "index"), [("0", 0), ("Tench, tinca tinca", 0), ("tinca tinca", 0), (" HAMMER ", 2), ("7", 4)]
)
def test_a_class_is_named_by_index_or_label(wanted: str, index: int) -> None:
    assert class_index(LABELS, wanted, "m") == index


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("crane", r"label of \[1, 3\]"), ("hamer", "such as 'hammer'"), ("99", "or 0 to 4"), ("-1", "no class '-1'")],
)
def test_an_unknown_class_is_told_with_the_nearest(wanted: str, sentence: str) -> None:
    with pytest.raises(ServiceError, match=sentence) as told:
        class_index(LABELS, wanted, "m")
    assert told.value.code == "bad_parameter"
