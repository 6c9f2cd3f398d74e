"""Header fields without tables, beside what RFC 7541 writes."""

from __future__ import annotations

import pytest
from eca_service import hpack
from eca_service.hpack import block_of, fields_of


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 70_000])
def test_lengths_of_literals(size: int) -> None:
    fields = (("name", "v" * size), ("n" * (size + 1), "value"))
    assert fields_of(block_of(fields)) == {name.encode(): value.encode() for name, value in fields}


def test_fields_as_the_rfc_writes_them() -> None:
    """RFC 7541, C.2.1 and C.2.3, and C.1.2's 1337 with seven bits before it."""
    assert fields_of(bytes.fromhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572")) == {
        b"custom-key": b"custom-header"
    }
    assert fields_of(bytes.fromhex("100870617373776f726406736563726574")) == {b"password": b"secret"}
    assert hpack._literal(bytes(1337))[:3] == bytes([127, (1337 - 127) & 127 | 128, (1337 - 127) >> 7])
