"""A file of labels as editors and web pages leave it."""

from __future__ import annotations

from pathlib import Path

import pytest
from eca_build.errors import BuildError
from eca_build.labels import read_labels


def test_labels_of_editors_that_mark_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_labels(tmp_path / "labels.txt", 2) == ("cat", "dog")


def test_a_label_ends_where_its_line_does(tmp_path: Path) -> None:
    """As editors and Triton see it: a line separator that was copied from a web page is part of the label."""
    (tmp_path / "labels.txt").write_bytes("cat\u2028Felis\r\nd\x85g\n".encode())
    assert read_labels(tmp_path / "labels.txt", 2) == ("cat\u2028Felis", "d\x85g")


def test_labels_that_cannot_be_read_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("cat\nd\u00f6g\n".encode("latin-1"))
    with pytest.raises(BuildError, match=r"labels\.txt is not in UTF-8; save it in that"):
        read_labels(tmp_path / "labels.txt", 2)
    with pytest.raises(BuildError, match=r"none\.txt cannot be read: No such file or directory$"):
        read_labels(tmp_path / "none.txt", 2)
