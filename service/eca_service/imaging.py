"""From the bytes of an image to the pixels that a network is given; the only module that knows the codec."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.geometry import Size, placement

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION = 0x0112
# What Pillow's decoders raise on damaged files: they have no common error.
DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, ArithmeticError, LookupError, struct.error, zlib.error)
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before any pixel is decoded


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [crop, crop, 3], RGB, row-major, and what was done to the image that a caller may not expect.

    `size` is the upright image's (width, height), `orientation` EXIF's number that turned it so (1: not turned).
    `preview` is the upright image as uint8 [h, w, 3], where one was asked for.
    """

    pixels: NDArray[np.uint8]
    warnings: tuple[str, ...]
    size: Size = (0, 0)
    orientation: int = 1
    preview: NDArray[np.uint8] | None = None


def decode(data: bytes, recipe: Preprocessing, max_pixels: int, preview_px: int = 0) -> Decoded:
    """Decodes and follows the recipe: turned by EXIF, to RGB, shorter side resized, centre cropped.

    With `preview_px` the whole image is kept too, its longer side at most so many pixels.

    Raises ServiceError: unsupported_image_format, image_too_many_pixels, image_truncated, image_undecodable.
    """
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata that changes no pixel
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ServiceError(
                "unsupported_image_format", f"the {len(data)} bytes are no image in {', '.join(FORMATS)}"
            ) from None
        except DAMAGE as error:
            raise ServiceError("image_undecodable", f"the image's header is damaged: {error}") from None
        with opened:
            pixels = opened.width * opened.height
            if pixels > max_pixels:
                raise ServiceError(
                    "image_too_many_pixels",
                    f"the image has {opened.width} x {opened.height} = {pixels} pixels, at most {max_pixels} are taken",
                )
            try:
                if getattr(opened, "n_frames", 1) > 1:
                    notes.append("first_frame")
                    opened.seek(0)
                opened.load()
                orientation = opened.getexif().get(ORIENTATION, 1)
                image = to_rgb(opened, notes)
                if orientation not in range(2, 9):
                    orientation = 1
                else:
                    notes.append("exif_rotated")
                    image.getexif()[ORIENTATION] = orientation
                    image = ImageOps.exif_transpose(image)
            except DAMAGE as error:
                cut = "truncated" in str(error) or isinstance(error, EOFError)
                code = "image_truncated" if cut else "image_undecodable"
                raise ServiceError(code, f"the {opened.format} image cannot be decoded: {error}") from None
    return Decoded(
        np.asarray(fit(image, recipe)),
        tuple(notes),
        image.size,
        orientation,
        np.asarray(_shrunk(image, preview_px)) if preview_px else None,
    )


def to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """The conversion policy: gray repeated, transparency over white, 16 bits scaled to 8, CMYK by Pillow's formula."""
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        notes.append("reduced_to_8_bit")
        values = np.asarray(image).astype(np.float64)
        # "I" and "F" say nothing of their range: what fits into 8 bits is taken as 8 bits.
        scaled = values / 257 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else values
        image = Image.fromarray(np.clip(scaled.round(), 0, 255).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha_on_white")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "CMYK":
        notes.append("converted_cmyk")
    return image if image.mode == "RGB" else image.convert("RGB")  # a needless copy of a large image is slow


def fit(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    """Shorter side to `resize` pixels by the recipe's antialiased filter, then the centre `crop` x `crop`."""
    placed = placement(image.size, recipe)
    if (placed.width, placed.height) != image.size:
        image = image.resize((placed.width, placed.height), Image.Resampling[recipe.filter.upper()])
    return image.crop((placed.left, placed.top, placed.left + recipe.crop, placed.top + recipe.crop))


def _shrunk(image: Image.Image, longest_px: int) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((longest_px, longest_px))
    return copy
