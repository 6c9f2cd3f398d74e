"""The picture of confusion matrices."""

from __future__ import annotations

import io

import numpy as np
import pytest
from eca_service.confusion import MARGIN_PX, SIDE_PX, TITLE_PX, confusion_png
from eca_service.evaluation import Evaluation
from PIL import Image


def drawing(found: list[Evaluation]) -> Image.Image:
    return Image.open(io.BytesIO(confusion_png(found))).convert("L")


def drawn(model: str, classes: int) -> Image.Image:
    """Every class right but the last, which is taken for the first."""
    found = Evaluation(model, [f"class {index}" for index in range(classes)])
    for index in range(classes):
        found.add(index, [index if index < classes - 1 else 0])
    return drawing([found])


@pytest.mark.parametrize("classes", [2, 281])
@pytest.mark.parametrize("model", ["m", "a-model-with-a-name-of-64-characters-" + 27 * "x"])
def test_its_title_is_whole(model: str, classes: int) -> None:
    """As long as where there is room: 281 classes take 281 pixels."""
    title, of_many = (np.asarray(drawn(model, of))[MARGIN_PX:, MARGIN_PX:] < 200 for of in (classes, 1000))
    assert np.flatnonzero(title[:32].any(0)).max() == np.flatnonzero(of_many[:32].any(0)).max()
    told = np.flatnonzero(title[36:56].any(0)).max()
    assert told > 380, "top-1, top-5, how many, and what is across"


def test_a_row_is_a_true_class() -> None:
    picture = np.asarray(drawn("m", 100))
    matrix = picture[MARGIN_PX + TITLE_PX :, MARGIN_PX + 10 :]
    assert matrix[2, 2] == matrix[497 - 5, 497 - 5] < 150, "dark on the diagonal"
    assert matrix[497, 2] < 150, "the last is taken for the first"
    assert matrix[2, 497] > 200


def test_only_classes_that_occur_are_drawn() -> None:
    """Ten folders of a network of 1000 classes are ten rows that can be read, the same for each model."""
    first, second = (Evaluation(name, [f"class {index}" for index in range(1000)]) for name in "ab")
    for truth in range(0, 100, 10):
        first.add(truth, [truth])
        second.add(truth, [truth + 1 if truth == 50 else truth])
    alone, both = (np.asarray(drawing([first])), np.asarray(drawing([first, second])))
    cells = [picture[MARGIN_PX + TITLE_PX :][: 10 * (SIDE_PX // 11)] for picture in (alone, both)]
    dark = [int((cell[:, : cell.shape[0] + 100] < 100).any(1).sum()) for cell in cells]
    assert len(alone) > len(both), "ten classes, and eleven: one of them was only answered"
    assert dark[0] > dark[1] > 0.8 * len(cells[1]), "each row has its share"


def test_no_image_at_all_is_a_picture_too() -> None:
    assert Image.open(io.BytesIO(confusion_png([Evaluation("m", ["a", "b"])]))).width > 100
