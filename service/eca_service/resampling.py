"""The recipe's resize and crop: the reference by Pillow, and the same taps over nothing but what the crop keeps.

The only module that knows cykooz_resizer, Pillow's convolution by SIMD: it rounds a little differently, at most two
levels apart. Where it has no wheel Pillow does the work, at most one level apart; and where an image is enlarged, for
there cykooz_resizer reads far outside of it if bicubic's first taps are zero, as at 218 x 125 pixels for 256 and 224.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eca_service.contract import Preprocessing
from eca_service.geometry import Box, crop_box, placement

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None

MOST_RESIZED_PX = 1 << 24  # of an image that is resized whole before it is cropped: a strip would fill the memory
MOST_COPIED_PX = 1 << 22  # of a Pillow image given to SIMD: copying a larger one takes the time that it saves
REACH = {"bilinear": 1.0, "bicubic": 2.0}  # taps to each side, in pixels of the smaller image


def fit(image: Image.Image, recipe: Preprocessing) -> NDArray[np.uint8]:
    """Shorter side to `resize` pixels by the recipe's antialiased filter, then the centre: uint8 [crop, crop, 3]."""
    placed = placement(image.size, recipe)
    if placed.width * placed.height > MOST_RESIZED_PX:
        return _by_pillow(image, crop_box(image.size, recipe), recipe)
    if (placed.width, placed.height) != image.size:
        image = image.resize((placed.width, placed.height), Image.Resampling[recipe.filter.upper()])
    return np.asarray(image.crop((placed.left, placed.top, placed.left + recipe.crop, placed.top + recipe.crop)))


def keep(source: Image.Image | NDArray[np.uint8], box: Box, recipe: Preprocessing) -> NDArray[np.uint8]:
    """What `box` holds of an RGB image, or of uint8 [h, w, 3], resized: uint8 [crop, crop, 3].

    The filter sees the pixels around the box where there are any. The GIL is released meanwhile.
    """
    if box.right - box.left == box.bottom - box.top == recipe.crop:  # nothing is resized: the edges lie between pixels
        left, top = int(box.left), int(box.top)
        return np.asarray(source)[top : top + recipe.crop, left : left + recipe.crop]
    enlarged = min(box.right - box.left, box.bottom - box.top) < recipe.crop
    copied = isinstance(source, Image.Image) and source.width * source.height > MOST_COPIED_PX
    if simd is not None and not enlarged and not copied:
        return _by_simd(np.asarray(source), box, recipe)
    return _by_pillow(source if isinstance(source, Image.Image) else Image.fromarray(source), box, recipe)


def _by_pillow(image: Image.Image, box: Box, recipe: Preprocessing) -> NDArray[np.uint8]:
    edges = (box.left, box.top, box.right, box.bottom)
    return np.asarray(image.resize((recipe.crop, recipe.crop), Image.Resampling[recipe.filter.upper()], box=edges))


def _by_simd(pixels: NDArray[np.uint8], box: Box, recipe: Preprocessing) -> NDArray[np.uint8]:
    side = recipe.crop
    height, width = pixels.shape[:2]
    margin = math.ceil(REACH[recipe.filter] * max(1.0, (box.bottom - box.top) / side)) + 1
    top, bottom = max(0, math.floor(box.top) - margin), min(height, math.ceil(box.bottom) + margin)
    source = simd.ImageData(width, bottom - top, simd.PixelType.U8x3, pixels[top:bottom].tobytes())
    target = simd.ImageData(side, side, simd.PixelType.U8x3)
    kind = simd.FilterType.bilinear if recipe.filter == "bilinear" else simd.FilterType.catmull_rom  # Pillow's bicubic
    options = simd.ResizeOptions(
        simd.ResizeAlg.convolution(kind),
        crop_box=simd.CropBox(
            box.left,
            box.top - top,
            _length(box.left, box.right, width),
            _length(box.top - top, box.bottom - top, bottom - top),
        ),
    )
    simd.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(side, side, 3)


def _length(start: float, end: float, limit: int) -> float:
    """From start to end; a little less where rounding would carry it over the limit."""
    length = min(end, limit) - start
    return length if start + length <= limit else math.nextafter(length, 0.0)
