"""What the tests of the image policy ask of an image, in both ways of preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import Decoded, decode
from PIL import Image

RECIPE = Preprocessing(resize=32, crop=32)
LEFT, RIGHT = (200, 40, 40), (40, 40, 200)
both = pytest.mark.parametrize("fast", [False, True], ids=["reference", "fast"])


def halves() -> Image.Image:
    """LEFT and RIGHT side by side."""
    image = Image.new("RGB", (32, 32), LEFT)
    image.paste(RIGHT, (16, 0, 32, 32))
    return image


def colour_of(data: bytes, fast: bool, max_pixels: int = 10**6) -> tuple[list[int], tuple[str, ...]]:
    """The one colour of a plain image, and the warnings."""
    got = decode(data, RECIPE, max_pixels, fast)
    assert np.ptp(got.pixels.astype(int), axis=(0, 1)).max() <= 1
    return [int(value) for value in got.pixels[16, 16]], got.warnings


def code(data: bytes, fast: bool, max_pixels: int = 50_000_000) -> str:
    """The code of the error that the image meets."""
    with pytest.raises(ServiceError) as caught:
        decode(data, RECIPE, max_pixels, fast)
    return caught.value.code


def near(got: Decoded, left: tuple[int, ...], right: tuple[int, ...], tolerance: int = 3) -> bool:
    """Whether the halves have these colours."""
    pixels = got.pixels.astype(int)
    return bool(
        np.abs(pixels[:, 3:12] - left).max() <= tolerance and np.abs(pixels[:, 20:29] - right).max() <= tolerance
    )
