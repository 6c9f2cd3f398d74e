"""The conversion policy: an image of any mode to 8-bit RGB. The table in service/README.md says the same in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS, PHOTOMETRIC = 258, 262  # tags of a TIFF
BAND = 64  # rows of a deep image that are brought to 8 bits at a time, for the memory's sake


def to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """The conversion policy: gray repeated, transparency over white, deep pixels scaled to 8 bits, CMYK by Pillow."""
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        notes.append("reduced_to_8_bit")
        image = _to_8_bit(image)
    if image.mode == "La":
        image = image.convert("LA")  # the one way out of it
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            notes.append("alpha_on_white")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=alpha)
            return white
    if image.mode == "CMYK":
        notes.append("converted_cmyk")
    return image if image.mode == "RGB" else image.convert("RGB")  # a needless copy of a large image is slow


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Gray of 16 bits, whole numbers or floats as L, or LA where one value stands for transparent."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    most = 4095.0 if tags.get(BITS) == (12,) else _range(values)
    gray = np.empty(values.shape, np.uint8)
    with np.errstate(invalid="ignore"):  # a float may be no number
        for top in range(0, len(gray), BAND):
            band = np.nan_to_num(values[top : top + BAND].astype(np.float64), posinf=most, neginf=0)
            gray[top : top + BAND] = np.clip(np.rint(band * (255 / most)), 0, 255)
    if tags.get(PHOTOMETRIC) == 0:  # white is 0: Pillow turns pixels of 8 bits and fewer alone
        np.subtract(255, gray, gray)
    reduced = Image.fromarray(gray)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        reduced.putalpha(Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255))))
    return reduced


def _range(values: NDArray[Any]) -> float:
    """The value that is white: nothing says it but for 16 bits, so it is the least of the usual ones that holds all."""
    if values.dtype.itemsize == 2:
        return 65535.0
    largest = float(values.max(initial=0, where=np.isfinite(values)))
    usual = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return next((white for white in usual if largest <= white), largest)
