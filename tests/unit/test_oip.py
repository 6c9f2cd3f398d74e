"""What an answer becomes as tensors of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

import pytest
from eca_service.answers import Answer, Prediction, Result
from eca_service.errors import ServiceError
from eca_service.oip import OUTPUTS, tensors

CUT = Result(error=ServiceError("image_truncated", "it is cut off"))
OTHER = Result(error=ServiceError("unsupported_image_format", "it is none"))
DOG = Result((Prediction(5, "dog", 0.75), Prediction(3, "cat", 0.25)))


def told(*results: Result) -> list[Any]:
    """The label, index and score of each image's best class."""
    contract: Any = None  # it is not looked at
    found = {one.name: one.values for one in tensors(Answer(contract, list(results), 0), 2, list(OUTPUTS))}
    return [
        (found["label"][row][0].decode(), found["index"][row, 0], found["score"][row, 0]) for row in range(len(results))
    ]


def test_each_image_of_several_has_its_own_error() -> None:
    cut, other = (
        ("error: image_truncated: it is cut off", -1, 0),
        ("error: unsupported_image_format: it is none", -1, 0),
    )
    assert told(CUT, DOG) == [cut, ("dog", 5, 0.75)]
    assert told(CUT, OTHER) == [cut, other], "also where none succeeded"


def test_the_error_of_a_lone_image_is_raised_and_holds_nothing() -> None:
    with pytest.raises(ServiceError, match="image_truncated: it is cut off"):
        told(CUT)
    assert CUT.error is not None
    assert CUT.error.__traceback__ is None, "by its frames it would hold the answer, which holds it"
