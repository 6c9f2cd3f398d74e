"""What an evaluation counts, and what it says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eca_service.cli.evaluating import _truths
from eca_service.evaluation import Evaluation

OF_MANY = """if True:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    from eca_service.cli.evaluating import _json
    from eca_service.evaluation import Evaluation
    found = Evaluation("m", [f"class {index}" for index in range(21_841)])
    for truth, answered in ((7, 7), (7, 20_000), (20_000, 20_000)):
        found.add(truth, [answered])
    print(_json({"m": found}, 0))
"""


def test_shares_are_those_of_the_matrix() -> None:
    generator = np.random.default_rng(0)
    found, matrix, in_top = Evaluation("m", list("abcdefgh")), np.zeros((8, 8), int), 0
    for truth in generator.integers(1, 6, 200):  # some classes have no image, some are never answered
        answered = np.argsort(-(generator.standard_normal(6) + 2 * (np.arange(6) == truth))).tolist()
        found.add(int(truth), answered)
        matrix[truth, answered[0]] += 1
        in_top += truth in answered[:5]
    right = np.diag(matrix)
    assert (found.images, found.top1, found.top5) == (200, right.sum() / 200, in_top / 200)
    assert found.occurring == [0, 1, 2, 3, 4, 5]
    assert (found.confusion(range(8)) == matrix).all()
    assert (found.confusion([4, 2]) == matrix[np.ix_([4, 2], [4, 2])]).all()
    for index in range(8):
        assert found.recall(index) == right[index] / max(1, matrix[index].sum())
        assert found.precision(index) == right[index] / max(1, matrix[:, index].sum())
        others = np.where(np.arange(8) == index, 0, matrix[index])
        assert found.mistaken_for(index) == (int(others.argmax()) if others.any() else None)


def test_of_many_classes_only_what_occurs_is_kept_and_told() -> None:
    """A matrix of all 21,841 took gigabytes, as numbers in Python or JSON more than most machines have."""
    done = subprocess.run([sys.executable, "-c", OF_MANY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["models"]["m"]
    assert (figures["occurring"], figures["confusion"]) == ([7, 20_000], [[1, 1], [0, 1]])
    assert figures["classes"]["class 20000"] == {"images": 1, "recall": 1.0, "precision": pytest.approx(0.5)}


def test_a_folder_that_is_called_as_a_label_is_that_class_though_it_is_a_number_too(tmp_path: Path) -> None:
    """torchvision's ImageFolder sorts names as texts: of Flowers-102's folders "10" is the second."""
    named, numbered = Evaluation("named", ["1", "10", "2"]), Evaluation("numbered", ["rose", "tulip", "aster"])
    for name in ("1", "2", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    truths = _truths(tmp_path, {"named": named})
    assert {path.parent.name: named.labels[truth["named"]] for path, truth in truths.items()} == {
        name: name for name in named.labels
    }
    (tmp_path / "10" / "a.jpg").unlink()
    assert [truth["numbered"] for truth in _truths(tmp_path, {"numbered": numbered}).values()] == [1, 2]


def test_a_folder_with_what_cannot_be_looked_at_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "linked").symlink_to("x" * 300)
    assert _truths(tmp_path, {"m": Evaluation("m", ["a"])}) == {tmp_path / "a" / "1.jpg": {"m": 0}}
