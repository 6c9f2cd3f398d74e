"""The image policy: one test for each row of the table in service/README.md but those of `test_hostile_images`."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.imaging import decode
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.unit import image_files as files
from tests.unit import test_hostile_images
from tests.unit.image_files import KINDS, encoded, noise, png, tiff, tiff_of, turned_by_exif
from tests.unit.image_policy import LEFT, RECIPE, RIGHT, both, code, colour_of, halves, near

EXACT: dict[str, dict[str, object]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
WHITE_IS_ZERO = struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)  # a TIFF's tag, before and then


@both
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int, fast: bool) -> None:
    options = EXACT.get(kind, {})
    image = files.scene(48, 32)
    plain = np.asarray(Image.open(io.BytesIO(encoded(image, kind, **options))).convert("RGB"))
    upright = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain),
    }[orientation]
    top, left = ((side - 32) // 2 for side in upright.shape[:2])
    got = decode(turned_by_exif(image, orientation, kind, **options), RECIPE, 10**6, fast)
    assert np.array_equal(got.pixels, upright[top : top + 32, left : left + 32])
    assert got.warnings == (("exif_rotated",) if orientation > 1 else ())
    assert (got.orientation, got.size) == (orientation, upright.shape[1::-1])


@both
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_by_xmp(kind: str, fast: bool) -> None:
    """As some programs write it: where EXIF says nothing, it counts."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    there: dict[str, dict[str, object]] = {"PNG": {"pnginfo": text}, "TIFF": {"tiffinfo": {700: xmp}}}
    image = files.scene(48, 32)
    got = decode(encoded(image, kind, **there.get(kind, {"xmp": xmp}), **EXACT.get(kind, {})), RECIPE, 10**6, fast)
    by_exif = decode(turned_by_exif(image, 6, kind, **EXACT.get(kind, {})), RECIPE, 10**6, fast)
    assert np.array_equal(got.pixels, by_exif.pixels)
    assert (got.orientation, got.size, got.warnings) == (6, (32, 48), ("exif_rotated",))


@both
def test_exif_damaged(fast: bool) -> None:
    whole = turned_by_exif(halves(), 6, "JPEG")
    at = whole.index(b"Exif\0\0") + 6
    for damage in (b"XX", b"II*\0\xff\xff\xff\xff", bytes(20)):
        got = decode(whole[:at] + damage + whole[at + len(damage) :], RECIPE, 10**6, fast)
        assert got.warnings == ()
        assert got.orientation == 1
    for unknown in (0, 9):
        got = decode(turned_by_exif(files.scene(48, 32), unknown, "JPEG"), RECIPE, 10**6, fast)
        assert (got.warnings, got.orientation, got.size) == ((), 1, (48, 32))


@both
def test_gray(fast: bool) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert colour_of(encoded(Image.new("L", (40, 40), 77), kind), fast) == ([77, 77, 77], ())


@both
def test_one_bit(fast: bool) -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        assert colour_of(encoded(Image.new("1", (40, 40), 1), kind), fast) == ([255, 255, 255], ())
        assert colour_of(encoded(Image.new("1", (40, 40), 0), kind), fast) == ([0, 0, 0], ())


@both
def test_palette(fast: bool) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 120, 230])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert colour_of(encoded(image, kind), fast) == ([10, 120, 230], ())


@both
def test_palette_with_transparency(fast: bool) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 120, 230])
    assert colour_of(encoded(image, "PNG", transparency=1), fast) == ([255, 255, 255], ("alpha_on_white",))
    assert colour_of(encoded(image, "PNG", transparency=bytes([255, 0])), fast)[0] == [255, 255, 255]
    assert colour_of(encoded(image, "PNG", transparency=bytes([0, 255])), fast) == ([10, 120, 230], ())
    assert colour_of(encoded(image, "GIF", transparency=1), fast) == ([255, 255, 255], ("alpha_on_white",))
    image = image.convert("PA")
    assert colour_of(encoded(image, "TIFF"), fast) == ([10, 120, 230], ())
    image.putalpha(0)
    assert colour_of(encoded(image, "TIFF"), fast) == ([255, 255, 255], ("alpha_on_white",))


@both
def test_one_transparent_colour(fast: bool) -> None:
    clear = ([255, 255, 255], ("alpha_on_white",))
    assert colour_of(encoded(Image.new("L", (40, 40), 9), transparency=9), fast) == clear
    assert colour_of(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3)), fast) == clear
    assert colour_of(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(9, 9, 9)), fast) == ([1, 2, 3], ())
    deep = np.full((40, 40, 1), 257 * 90, np.uint16)
    assert colour_of(png(deep, 0, files.chunk(b"tRNS", struct.pack(">H", 257 * 90))), fast)[0] == [255, 255, 255]
    assert colour_of(png(deep, 0, files.chunk(b"tRNS", struct.pack(">H", 257 * 91))), fast)[0] == [90, 90, 90]
    deep = np.broadcast_to(np.array([1, 257, 4660], np.uint16), (40, 40, 3))
    same, other = (files.chunk(b"tRNS", struct.pack(">HHH", *colour)) for colour in ((1, 257, 4660), (256, 1, 18)))
    assert colour_of(png(deep, 2, same), fast) == ([255, 255, 255], ("reduced_to_8_bit", "alpha_on_white"))
    assert colour_of(png(deep, 2, other), fast) == ([0, 1, 18], ("reduced_to_8_bit",)), "whatever the lower bytes are"
    for depth, packed, gray in ((1, 0xFF, 1), (2, 0xAA, 2), (4, 0x33, 3)):
        samples = np.full((40, 5 * depth, 1), packed, np.uint8)
        clear_one, other = (files.chunk(b"tRNS", struct.pack(">H", value)) for value in (gray, gray - 1))
        assert colour_of(png(samples, 0, clear_one, claimed=(40, 40), depth=depth), fast) == clear
        kept = colour_of(png(samples, 0, other, claimed=(40, 40), depth=depth), fast)
        assert kept == ([gray * 255 // (2**depth - 1)] * 3, ())


@both
def test_gray_of_16_bits(fast: bool) -> None:
    for value, expected in ((257 * 90, 90), (257 * 90 + 128, 90), (257 * 90 + 129, 91), (65535, 255), (200, 1)):
        wanted = ([expected] * 3, ("reduced_to_8_bit",))
        deep = np.full((40, 40), value, np.uint16)
        assert colour_of(png(deep[..., None], 0), fast) == wanted
        assert colour_of(tiff_of(deep), fast) == wanted
        assert colour_of(tiff_of(deep, order=">"), fast) == wanted
        assert colour_of(encoded(Image.fromarray(deep), "TIFF", compression="tiff_lzw"), fast) == wanted
        assert colour_of(tiff_of(65535 - deep).replace(*WHITE_IS_ZERO), fast) == wanted


@both
def test_gray_of_12_bits(fast: bool) -> None:
    """Two values in three bytes, most significant bits first."""
    at = files.tiff_data_at(6)
    tags = [(256, 4, 1, 40), (257, 4, 1, 40), (258, 3, 1, 12), (262, 3, 1, 1), (273, 4, 1, at), (278, 4, 1, 40)]
    for packed, gray in ((b"\xff\xff\xff", 255), (b"\x80\x08\x00", 128), (bytes(3), 0)):
        assert colour_of(tiff(tags, packed * 20 * 40), fast) == ([gray] * 3, ("reduced_to_8_bit",))


@both
def test_colour_of_16_bits(fast: bool) -> None:
    deep = np.broadcast_to(np.array([257 * 90, 511, 65535], np.uint16), (40, 40, 3))
    wanted = ([90, 1, 255], ("reduced_to_8_bit",))
    assert colour_of(png(deep, 2), fast) == wanted
    assert colour_of(tiff_of(deep), fast) == wanted
    assert colour_of(tiff_of(deep, order=">"), fast) == wanted
    clear = np.broadcast_to(np.array([257 * 90, 0, 0, 0], np.uint16), (40, 40, 4))
    assert colour_of(png(clear, 6), fast) == ([255, 255, 255], ("reduced_to_8_bit", "alpha_on_white"))


@both
def test_gray_of_32_bits_and_floats(fast: bool) -> None:
    for samples, sample_format, expected in (
        (np.full((40, 40), 1, np.int32), 2, 1),
        (np.full((40, 40), 90, np.int32), 2, 90),
        (np.full((40, 40), 255, np.int32), 2, 255),
        (np.full((40, 40), 257 * 90, np.int32), 2, 90),
        (np.full((40, 40), 0.5, np.float32), 3, 128),
        (np.full((40, 40), 90, np.float32), 3, 90),
        (np.full((40, 40), 257 * 90, np.float32), 3, 90),
        (np.full((40, 40), -5, np.float32), 3, 0),
        (np.full((40, 40), np.nan, np.float32), 3, 0),
        (np.full((40, 40), 0x7F800001, np.uint32), 3, 0),  # the other kind of NaN, of which numpy would warn
        (np.full((40, 40), np.inf, np.float32), 3, 255),
        (np.full((40, 40), -np.inf, np.float32), 3, 0),
        (np.full((40, 40), 1e30, np.float32), 3, 255),
    ):
        assert colour_of(tiff_of(samples, sample_format), fast) == ([expected] * 3, ("reduced_to_8_bit",))


@both
def test_transparency(fast: bool) -> None:
    half = Image.new("RGBA", (40, 40), (100, 0, 200, 128))
    for kind in ("PNG", "TIFF"):
        got, notes = colour_of(encoded(half, kind), fast)
        assert np.abs(np.subtract(got, [177, 127, 227])).max() <= 1
        assert notes == ("alpha_on_white",)
    assert colour_of(encoded(Image.new("RGBA", (40, 40), (1, 2, 3, 0)), "WEBP", lossless=True), fast)[0] == [255] * 3
    assert colour_of(encoded(Image.new("RGBA", (40, 40), (9, 8, 7, 255))), fast) == ([9, 8, 7], ())


@both
def test_gray_with_transparency(fast: bool) -> None:
    assert colour_of(encoded(Image.new("LA", (40, 40), (0, 0))), fast) == ([255, 255, 255], ("alpha_on_white",))
    assert colour_of(encoded(Image.new("LA", (40, 40), (50, 255))), fast) == ([50, 50, 50], ())
    at, within = files.tiff_data_at(8), (338, 3, 1, 1)  # the gray has its alpha within
    tags = [(256, 4, 1, 40), (257, 4, 1, 40), (258, 3, 2, 8 << 16 | 8), (262, 3, 1, 1), (273, 4, 1, at), (277, 3, 1, 2)]
    tags += [(278, 4, 1, 40), within]
    assert colour_of(tiff(tags, bytes([60, 128]) * 1600), fast) == ([187] * 3, ("alpha_on_white",))


@both
def test_cmyk(fast: bool) -> None:
    inks = Image.new("CMYK", (40, 40), (255, 127, 0, 0))
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        got, notes = colour_of(encoded(inks, kind, **options), fast)
        assert np.abs(np.subtract(got, [0, 128, 255])).max() <= 2
        assert notes == ("converted_cmyk",)


@both
def test_ycck(fast: bool) -> None:
    """Adobe's YCCK holds the inverted inks: C, M, Y as YCbCr and K as it is."""
    stored = np.array([60, 150, 110, 230])  # Y, Cb, Cr, K
    plain = encoded(
        Image.fromarray(np.broadcast_to(255 - stored.astype(np.uint8), (40, 40, 4)), "CMYK"), "JPEG", quality=100
    )
    y, cb, cr = stored[0], stored[1] - 128, stored[2] - 128
    inks = np.array([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    # libjpeg turns YCC to RGB, calls 255 - RGB the inks, and Adobe inverted them once more
    wanted = (255 - inks) * stored[3] / 255
    got, notes = colour_of(files.as_ycck(plain), fast)
    assert np.abs(got - wanted).max() <= 3, (got, wanted)
    assert notes == ("converted_cmyk",)


@both
def test_progressive(fast: bool) -> None:
    for progressive in (False, True):
        assert near(
            decode(encoded(halves(), "JPEG", progressive=progressive, quality=90, subsampling=0), RECIPE, 10**6, fast),
            LEFT,
            RIGHT,
        )


@both
def test_arithmetic(fast: bool) -> None:
    for data in (files.ARITHMETIC, files.ARITHMETIC_PROGRESSIVE):
        got = decode(data, Preprocessing(resize=32, crop=32), 10**6, fast)
        assert near(got, LEFT, RIGHT)


@both
def test_animation(fast: bool) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert colour_of(data, fast) == ([255, 0, 0], ("first_frame",))
        assert colour_of(encoded(frames[0], kind, **options), fast)[1] == ()


@both
def test_pages(fast: bool) -> None:
    pages = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for options in ({}, {"compression": "tiff_lzw"}):
        data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)
        assert colour_of(data, fast) == ([255, 0, 0], ("first_frame",))


@both
def test_colour_profile(fast: bool) -> None:
    image = Image.new("RGB", (40, 40), (200, 100, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes().ljust(100_000, b"\0")
    )  # printers' are larger
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        assert colour_of(encoded(image, kind, icc_profile=srgb, **options), fast) == ([200, 100, 50], ())
        other = colour_of(encoded(image, kind, icc_profile=lab, **options), fast)
        assert other == ([200, 100, 50], ("colour_profile_ignored",))


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tenth", range(10))
def test_truncated(kind: str, tenth: int, fast: bool) -> None:
    whole = encoded(noise(99, 99), kind)
    cut = whole[: len(whole) * tenth // 10]
    assert code(cut, fast) == ("image_truncated" if tenth else "unsupported_image_format")
    for header in (8,) if kind == "TIFF" else (12, 20):  # whose tags may come last, or first
        assert code(whole[:header], fast) == "image_truncated", "within its header"


@both
@pytest.mark.parametrize(("kind", "mark"), [("PNG", 12), ("GIF", 1)])
def test_end_mark(kind: str, mark: int, fast: bool) -> None:
    whole = encoded(noise(99, 99), kind)
    got, cut = (decode(data, RECIPE, 10**6, fast) for data in (whole, whole[:-mark]))
    assert np.array_equal(cut.pixels, got.pixels)
    assert cut.warnings == got.warnings


@both
def test_nothing(fast: bool) -> None:
    assert code(b"", fast) == "unsupported_image_format"
    assert code(bytes(5000), fast) == "unsupported_image_format"


@both
def test_other_formats(fast: bool) -> None:
    for data in (files.SVG, files.HEIC, files.AVIF, files.EPS, b"%PDF-1.7\n", b"hello", b"PK\3\4" + bytes(99)):
        assert code(data, fast) == "unsupported_image_format"
    for kind in ("PPM", "TGA", "ICO", "JPEG2000", "PCX", "SGI"):
        assert code(encoded(halves(), kind), fast) == "unsupported_image_format"


@both
def test_polyglot(fast: bool) -> None:
    script = b"<script>alert(1)</script>"
    zipped = b"PK\3\4" + bytes(40) + b"PK\5\6" + bytes(18)
    jpeg = encoded(Image.new("RGB", (40, 40), LEFT), "JPEG")
    commented = jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(script)) + script + jpeg[2:]
    assert np.abs(np.subtract(colour_of(commented + zipped, fast)[0], LEFT)).max() <= 2
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        image = encoded(Image.new("RGB", (40, 40), "white"), kind)
        assert colour_of(image + script + zipped + jpeg, fast) == ([255, 255, 255], ())
    assert code(script + jpeg, fast) == "unsupported_image_format", "the first bytes decide"


def test_every_row_has_its_test() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(test_\w+)` \|", (root / "service" / "README.md").read_text())
    through_the_service = {"test_wrong_name"}
    every = {name for name in globals() | vars(test_hostile_images) if name.startswith("test_")}
    here = every - {"test_every_row_has_its_test", "test_hostile_images", "test_memory"}
    assert len(named) == len(set(named))
    assert set(named) == here | through_the_service
    for name in through_the_service:
        assert f"def {name}(" in (root / "tests" / "integration" / "test_images.py").read_text()
