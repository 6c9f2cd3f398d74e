"""Which encoding an answer gets."""

from __future__ import annotations

import pytest
from eca_service.negotiation import chosen


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*;q=0", None),
        ("*", "gzip"),
        ("gzip;q=much", None),
        ("gzip;q=0.5;level=9, deflate;q=0.2", "gzip"),
    ],
)
def test_chosen(accepted: str, encoding: str | None) -> None:
    assert chosen(accepted) == encoding
