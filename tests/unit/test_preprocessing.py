"""The build verifies on the pixels that the gateway would send."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eca_build.images import load
from eca_service.contract import Preprocessing
from eca_service.imaging import decode
from PIL import Image


@pytest.mark.parametrize("size", [(32, 32), (301, 200), (200, 333), (20, 90)])
def test_build_and_gateway_agree(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    recipe = Preprocessing(resize=40, crop=32)
    gateway = decode((tmp_path / "a.png").read_bytes(), recipe, 10**6).pixels
    assert np.array_equal(load(tmp_path, recipe)[0], gateway)
