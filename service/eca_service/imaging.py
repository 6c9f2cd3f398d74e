"""From the bytes of an image to the pixels that a network is given; the only module that opens them."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, TiffTags, UnidentifiedImageError

from eca_service import bounds, foreign, jpeg, resampling
from eca_service.colours import to_rgb
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.geometry import Box, Size, as_stored, crop_box

FORMATS = tuple(bounds.SIGNATURES)
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STEPS = {"L;2": 85, "L;4": 17}  # between two grays of a PNG's, as Pillow unpacks them
ROOM = 2.5  # a JPEG that is scaled while it is decoded stays so many times larger than the recipe's size
# Bytes a pixel that decoding takes at most; a JPEG's coefficients besides, where it is in several scans.
MOST_BYTES, WEBP_BYTES, COEFFICIENT_BYTES = 13, 22, 8
# What Pillow's decoders raise on damaged files: they have no common error.
DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, ArithmeticError, LookupError, struct.error, zlib.error)
PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20  # characters of a PNG, each of up to four bytes, which nothing counts
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before any pixel is decoded
warnings.filterwarnings("ignore", module="PIL")  # it warns of odd metadata that changes no pixel

# So many scans libtiff decodes of a JPEG in a TIFF: each of 65,536 strips and tiles may be the same one, of 98.
os.environ["LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER"] = str(bounds.USUAL_SCANS)
# Of each damaged TIFF libtiff writes a line of its own to stderr, amid the log's; Pillow raises an error as well.
with contextlib.suppress(OSError, StopIteration, AttributeError), Path("/proc/self/maps").open() as maps:
    ctypes.CDLL(next(line.split()[-1] for line in maps if "/libtiff" in line)).TIFFSetErrorHandler(None)


class Large(Exception):
    """Decoding the image may take more memory than it was given room for: `bytes` at most."""

    def __init__(self, most: float) -> None:
        self.bytes = int(most)


def most_bytes(pixels: int) -> int:
    """What decoding any image of so many pixels takes at most."""
    return WEBP_BYTES * pixels


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


def decode(
    data: bytes,
    recipe: Preprocessing,
    max_pixels: int,
    fast: bool = False,
    preview_px: int = 0,
    room: float = math.inf,
) -> Decoded:
    """Decodes and follows the recipe: turned by EXIF, to RGB, shorter side resized, centre cropped.

    The reference turns and resizes the whole image with Pillow. `fast` resizes only what the crop keeps and turns that,
    and a JPEG of at least five times the recipe's size is scaled while it is decoded, to no less than 2.5 times that;
    tests/load/preprocessing.py measures how far the two are apart. With `preview_px` the whole image is kept too, its
    longer side at most so many pixels.

    Raises ServiceError: unsupported_image_format, image_too_many_pixels, image_truncated, image_undecodable; and Large,
    before any pixel is decoded, where that might take more than `room` bytes.
    """
    kind = bounds.format_of(data)
    if kind is None:
        raise ServiceError("unsupported_image_format", _unsupported(data))
    try:
        bounds.require_few_parts(data, kind)
        claimed = bounds.claimed_pixels(data, kind)
        _require_few(claimed, max_pixels, "the image")
        _require_room(WEBP_BYTES * claimed, room)
        with Image.open(bounds.Parts(data), formats=(kind,)) as opened:
            _require_few(opened.width * opened.height, max_pixels, f"the image, {opened.width} x {opened.height},")
            _require_few(_tile_px(opened), max_pixels, "a tile of the image")
            if kind == "JPEG":
                bounds.require_few_scans(data, opened.width * opened.height)
            shrink = _shrink(opened.size, recipe) if fast else 1
            if preview_px:
                shrink = min(shrink, _preview_shrink(opened.size, preview_px))
            _require_room(_needed(data, opened, shrink, room), room)
            return _follow(data, opened, recipe, fast, preview_px)
    except bounds.TooManyParts as error:
        raise ServiceError("image_undecodable", f"the {kind} image is not decoded: {error}") from None
    except UnidentifiedImageError:
        code = "image_truncated" if bounds.ends_early(data, kind) else "image_undecodable"
        raise ServiceError(code, f"the {kind} image's header is damaged") from None
    except DAMAGE as error:
        cut = "truncated" in str(error).lower() or bounds.ends_early(data, kind)
        code = "image_truncated" if cut else "image_undecodable"
        raise ServiceError(code, f"the {kind} image cannot be decoded: {error}") from None


def _unsupported(data: bytes) -> str:
    taken = ", ".join(FORMATS)
    if known := foreign.name_of(data):
        what, remedy = known
        return f"the {len(data)} bytes are {what}, not {taken}; {remedy}"
    return f"the {len(data)} bytes do not begin like {taken}"


def _require_few(pixels: int, most: int, what: str) -> None:
    if pixels > most:
        raise ServiceError("image_too_many_pixels", f"{what} has {pixels} pixels, at most {most} are allowed")


def _tile_px(opened: ImageFile.ImageFile) -> int:
    """The pixels of one of a TIFF's tiles, which is unpacked whole, however small the image; 0 for other images."""
    tags = getattr(opened, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in bounds.TILE_SIDES)
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _require_room(needed: float, room: float) -> None:
    if needed > room:
        raise Large(needed)


def _needed(data: bytes, opened: ImageFile.ImageFile, shrink: int, room: float) -> float:
    """The bytes that decoding it may take; a JPEG is scaled meanwhile, to a `shrink`th of its sides."""
    pixels = max(opened.width * opened.height, _tile_px(opened))
    if opened.format not in {"JPEG", "MPO"}:
        return MOST_BYTES * pixels
    needed = MOST_BYTES * pixels / shrink**2
    coefficients = COEFFICIENT_BYTES * pixels
    if needed + coefficients > room and bounds.several_scans(data):  # looked for only where it matters
        needed += coefficients
    return needed


def _shrink(size: Size, recipe: Preprocessing) -> int:
    """By how much a JPEG of that size is scaled while it is decoded: 1, 2, 4 or 8."""
    shrink = 1
    while shrink < 8 and min(size) >= 2 * shrink * ROOM * recipe.resize:
        shrink *= 2
    return shrink


def _preview_shrink(size: Size, longest_px: int) -> int:
    """The same for a preview, by Pillow's `draft`."""
    return next((shrink for shrink in (8, 4, 2) if min(size) >= shrink * longest_px), 1)


def _follow(data: bytes, opened: ImageFile.ImageFile, recipe: Preprocessing, fast: bool, preview_px: int) -> Decoded:
    notes: list[str] = []
    if getattr(opened, "is_animated", False):  # not n_frames, which may go through the whole file
        notes.append("first_frame")
    if not _srgb(opened.info.get("icc_profile")):
        notes.append("colour_profile_ignored")
    packed = str(opened.tile[0][3]) if opened.tile else ""
    clear = opened.info.get("transparency")  # which Pillow leaves as a PNG has it, and unpacks the pixels
    if opened.format == "PNG" and isinstance(clear, int):
        opened.info["transparency"] = clear * STEPS.get(packed, 1)
    elif isinstance(clear, tuple) and ";16" in packed:
        opened.info["transparency"] = tuple(value >> 8 for value in clear)
    if opened.mode in {"RGB", "RGBA"} and ";16" in packed:
        notes.append("reduced_to_8_bit")  # by Pillow while it is loaded; to_rgb does the other modes
    orientation = _orientation(opened)  # a PNG is loaded here: its EXIF may lie behind its pixels
    turn = orientation
    if opened.format == "TIFF":  # Pillow turns it while it loads it; its size before knows of TIFF's own tag alone
        opened.load()
        turn = 1
    whole = opened.size
    upright = whole[::-1] if turn >= 5 else whole
    if fast:
        box = as_stored(crop_box(upright, recipe), upright, turn)
        pixels = _turned(_kept(data, opened, box, recipe, notes), turn)
    else:
        opened.load()
        pixels = resampling.fit(_upright(to_rgb(opened, notes), turn), recipe)
    if orientation in TURNS:
        notes.append("exif_rotated")
    preview = _preview(data, opened, whole, turn, preview_px) if preview_px else None
    return Decoded(pixels, tuple(notes), upright, orientation, preview)


def _srgb(profile: bytes | None) -> bool:
    """Whether colours need no profile: there is none, or it names sRGB, in either of the encodings profiles use."""
    return not profile or b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _orientation(opened: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1 to 8; 1 also where EXIF is damaged, for the pixels may well be whole.

    Directories within it are let go: a TIFF's Pillow would unpack as it loads it, for minutes where they are large.
    """
    try:
        exif = opened.getexif()
        if isinstance(held := getattr(exif, "fp", None), io.BytesIO):
            bounds.require_few_parts(held.getvalue(), "TIFF")
        found = exif.get(ORIENTATION, 1)
        for within in exif.keys() & TiffTags.TAGS_V2_GROUPS.keys():
            del exif[within]
    except DAMAGE:
        if not opened.info.keys() & {"exif", "Raw profile type exif"}:
            raise  # a PNG is loaded to look for it, and that failed
        return 1
    return int(found) if found in TURNS else 1


def _kept(
    data: bytes, opened: ImageFile.ImageFile, box: Box, recipe: Preprocessing, notes: list[str]
) -> NDArray[np.uint8]:
    """What `box` holds of the image, resized to the crop: uint8 [crop, crop, 3], not yet turned by EXIF."""
    shrink = 1
    if opened.format in {"JPEG", "MPO"}:
        shrink = _shrink(opened.size, recipe)
        if opened.mode != "CMYK":
            pixels = jpeg.decode_scaled(data, opened.size, shrink)
            if pixels is not None:
                return resampling.keep(pixels, box.shrunk(shrink, shrink), recipe)
        opened.draft(None, (opened.width // shrink, opened.height // shrink))
    opened.load()
    return resampling.keep(to_rgb(opened, notes), box.shrunk(shrink, shrink), recipe)


def _preview(data: bytes, opened: ImageFile.ImageFile, whole: Size, turn: int, longest_px: int) -> NDArray[np.uint8]:
    if opened.size == whole:
        opened.draft(None, (longest_px, longest_px))  # of a JPEG that was not loaded yet
        image = to_rgb(opened, [])
    else:  # it was scaled for the recipe while it was loaded
        with Image.open(bounds.Parts(data), formats=("JPEG",)) as anew:
            anew.draft(None, (longest_px, longest_px))
            image = to_rgb(anew, [])
    image = _upright(image, turn)
    image.thumbnail((longest_px, longest_px))
    return np.asarray(image)


def _upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """uint8 [n, n, 3] turned as EXIF's orientation says."""
    if orientation in {3, 4, 6, 7}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 7, 8}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if orientation >= 5 else pixels)
