"""Draws a class activation map over the picture that it explains."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from eca_service.geometry import Box
from eca_service.imaging import ORIENTATION, TURNS

FOR, AGAINST = (255, 90, 0), (0, 90, 255)  # what speaks for the class is warm, what speaks against it cool
BAND = 64  # rows that are coloured at a time, for the memory's sake
# From an upright image back to the file's own pixels, by the orientation that turned it upright: of these turns all but
# the quarters undo themselves.
BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}


def overlay_png(
    picture: NDArray[np.uint8],
    values: NDArray[np.float64],
    crop: Box,
    opacity: float,
    orientation: int = 1,
    caption: str = "",
) -> bytes:
    """A PNG of `picture`, uint8 [h, w, 3] and upright, with the map over its part `crop` and nothing beyond.

    `values` [h, w] are what each place speaks for the class (positive) or against it; the largest is drawn with
    `opacity`, in [0, 1]. `crop` is in fractions of the picture. A thin frame shows it where it is not everything.
    The PNG has its pixels as the file that was sent has them, and like it says by EXIF's `orientation` (1 to 8) how it
    is to be turned; `caption` is kept in it as its description.
    """
    image = Image.fromarray(picture)
    edges = np.array(
        [crop.left * image.width, crop.top * image.height, crop.right * image.width, crop.bottom * image.height]
    )
    left, top, right, bottom = (int(edge) for edge in edges.round())
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    smooth = _share(values).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    for y in range(0, smooth.height, BAND):
        band = np.asarray(smooth.crop((0, y, smooth.width, min(y + BAND, smooth.height))))
        colours = Image.fromarray(_colours(band, opacity))
        image.paste(colours, (left, top + y), colours)
    if (left, top, right, bottom) != (0, 0, *image.size):
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline="white")
    exif = Image.Exif()
    if orientation in BACK:
        image = image.transpose(BACK[orientation])
        exif[ORIENTATION] = orientation
    text = PngInfo()
    text.add_itxt("Description", caption)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3, pnginfo=text, exif=exif)
    return out.getvalue()


def _share(values: NDArray[np.float64]) -> Image.Image:
    """The map as shares of its largest value, float32 in [-1, 1]."""
    largest = float(np.abs(values).max()) or 1.0
    return Image.fromarray((values / largest).astype(np.float32))


def _colours(shares: NDArray[np.float32], opacity: float) -> NDArray[np.uint8]:
    """The colours of `shares` [h, w], uint8 [h, w, 4]; beyond [-1, 1] they are as at its ends."""
    colours = np.empty((*shares.shape, 4), np.uint8)
    colours[..., :3] = np.where(shares[..., None] > 0, FOR, AGAINST)
    colours[..., 3] = (255 * opacity * np.abs(shares.clip(-1, 1))).round()
    return colours
