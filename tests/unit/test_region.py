"""Memory that Triton reads too: each slot holds one batch, and no other's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from eca_service.region import SLOTS, Region

IMAGE = np.zeros((224, 224, 3), np.uint8)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory lies in /dev/shm")


def test_what_is_larger_than_a_slot_is_not_laid_into_it() -> None:
    region = Region()
    region.unlink()
    assert region.lay([IMAGE] * 33) is None
    offsets = [region.lay([IMAGE] * 32) for _ in range(SLOTS)]
    assert len({*offsets} - {None}) == SLOTS
    assert region.lay([IMAGE]) is None, "all are taken"
    region.free(0)
    assert region.lay([IMAGE]) == 0
