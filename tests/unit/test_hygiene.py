"""The image policy: one test for each row of the table in service/README.md, in both ways of preprocessing."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import Decoded, decode
from PIL import Image, ImageCms

from tests.unit import image_files as files
from tests.unit.image_files import KINDS, encoded, noise, png, tiff, tiff_of, turned_by_exif

RECIPE = Preprocessing(resize=32, crop=32)
LEFT, RIGHT = (200, 40, 40), (40, 40, 200)
EXACT: dict[str, dict[str, object]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
both = pytest.mark.parametrize("fast", [False, True], ids=["reference", "fast"])


def halves(side: int = 32) -> Image.Image:
    image = Image.new("RGB", (side, side), LEFT)
    image.paste(RIGHT, (side // 2, 0, side, side))
    return image


def colour_of(data: bytes, fast: bool, max_pixels: int = 10**6) -> tuple[list[int], tuple[str, ...]]:
    """The one colour of a plain image, and the warnings."""
    got = decode(data, RECIPE, max_pixels, fast)
    assert np.ptp(got.pixels.astype(int), axis=(0, 1)).max() <= 1
    return [int(value) for value in got.pixels[16, 16]], got.warnings


def code(data: bytes, fast: bool, max_pixels: int = 50_000_000) -> str:
    with pytest.raises(ServiceError) as caught:
        decode(data, RECIPE, max_pixels, fast)
    return caught.value.code


def near(got: Decoded, left: tuple[int, ...], right: tuple[int, ...], tolerance: int = 3) -> bool:
    pixels = got.pixels.astype(int)
    return bool(
        np.abs(pixels[:, 3:12] - left).max() <= tolerance and np.abs(pixels[:, 20:29] - right).max() <= tolerance
    )


MEASURE = """
import sys
from eca_service.contract import Preprocessing
from eca_service.imaging import decode

def peak_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

data, fast = sys.stdin.buffer.read(), sys.argv[1] == "fast"
before = peak_kb()
try:
    decode(data, Preprocessing(), 10**8, fast)
finally:
    print((peak_kb() - before) * 1024)
"""


def grown(data: bytes, fast: bool, status: int = 0) -> int:
    """Bytes by which decoding it makes a process of its own larger, at most; `status` 1: it cannot be decoded."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    command = [sys.executable, "-c", MEASURE, "fast" if fast else "reference"]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    return int(done.stdout)


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


@both
def test_one_transparent_colour(fast: bool) -> None:
    clear = ([255, 255, 255], ("alpha_on_white",))
    assert colour_of(encoded(Image.new("L", (40, 40), 9), transparency=9), fast) == clear
    assert colour_of(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3)), fast) == clear
    assert colour_of(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(9, 9, 9)), fast) == ([1, 2, 3], ())
    deep = np.full((40, 40, 1), 257 * 90, np.uint16)
    assert colour_of(png(deep, 0, files.chunk(b"tRNS", struct.pack(">H", 257 * 90))), fast)[0] == [255, 255, 255]
    assert colour_of(png(deep, 0, files.chunk(b"tRNS", struct.pack(">H", 257 * 91))), fast)[0] == [90, 90, 90]
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


@both
def test_colour_of_16_bits(fast: bool) -> None:
    deep = np.broadcast_to(np.array([257 * 90, 257 * 10 + 255, 65535], np.uint16), (40, 40, 3))
    wanted = ([90, 11, 255], ("reduced_to_8_bit",))
    assert colour_of(png(deep, 2), fast) == wanted
    assert colour_of(tiff_of(deep), fast) == wanted
    assert colour_of(tiff_of(deep, order=">"), fast) == wanted
    clear = np.broadcast_to(np.array([257 * 90, 0, 0, 0], np.uint16), (40, 40, 4))
    assert colour_of(png(clear, 6), fast) == ([255, 255, 255], ("reduced_to_8_bit", "alpha_on_white"))


@both
def test_gray_of_32_bits_and_floats(fast: bool) -> None:
    for samples, sample_format, expected in (
        (np.full((40, 40), 90, np.int32), 2, 90),
        (np.full((40, 40), 257 * 90, np.int32), 2, 90),
        (np.full((40, 40), 0.5, np.float32), 3, 128),
        (np.full((40, 40), 90, np.float32), 3, 90),
        (np.full((40, 40), -5, np.float32), 3, 0),
        (np.full((40, 40), np.nan, np.float32), 3, 0),
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
    if kind != "TIFF":  # whose tags may come last, or first
        assert code(whole[:20], fast) == "image_truncated", "within its header"


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


@both
def test_claims(fast: bool) -> None:
    """Refused by the header alone, in no time and memory."""
    black = np.zeros((1, 1, 3), np.uint8)
    started = time.process_time()
    for data in (
        png(black, 2, claimed=(50_000, 50_000)),
        files.jpeg_claiming(50_000, 50_000),
        files.webp_claiming(16_383, 16_383),
        encoded(Image.new("P", (1, 1)), "GIF").replace(b"\1\0\1\0", b"\xff\xff\xff\xff"),
        tiff(
            [
                (256, 4, 1, 50_000),
                (257, 4, 1, 50_000),
                (258, 3, 1, 8),
                (259, 3, 1, 1),
                (262, 3, 1, 1),
                (273, 4, 1, 8),
                (279, 4, 1, 8),
            ]
        ),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(6),
    ):
        assert code(data, fast) == "image_too_many_pixels"
    assert time.process_time() - started < 0.5
    photo = encoded(noise(99, 99), "JPEG")
    assert code(photo, fast, max_pixels=99 * 99 - 1) == "image_too_many_pixels"
    decode(photo, RECIPE, 99 * 99, fast)


@both
def test_small_claim_of_a_large_tile(fast: bool) -> None:
    packed = zlib.compress(bytes(10**6), 9)
    at = files.tiff_data_at(10)
    tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tile = [(322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, at), (325, 4, 1, len(packed))]
    assert code(tiff(tags + tile, packed), fast) == "image_too_many_pixels"


@both
def test_packed_text(fast: bool) -> None:
    packed = zlib.compress(bytes(64 << 20), 9)
    black = np.zeros((40, 40, 3), np.uint8)
    for kind in (b"zTXt", b"iCCP"):
        data = png(black, 2, files.chunk(kind, b"a\0\0" + packed))
        assert code(data, fast) == "image_undecodable"
        assert grown(data, fast, status=1) < 32 << 20


@both
def test_many_parts(fast: bool) -> None:
    """Each of these is read in far more time than its bytes deserve, unless it is refused."""
    many = 1 << 20
    jpeg, gif = encoded(halves(), "JPEG"), encoded(Image.new("P", (1, 1)), "GIF")
    frame = gif.index(b",", 13)
    strips = [
        (256, 4, 1, 1),
        (257, 4, 1, many),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, many, 8),
        (278, 4, 1, 1),
        (279, 4, many, 8),
    ]
    big = struct.pack("<4sHHQ", b"II+\0", 8, 0, 16 + 8 * many) + bytes(8 * many) + struct.pack("<Q", len(strips))
    big += b"".join(struct.pack("<HHQQ", *strip) for strip in strips) + bytes(8)
    started = time.process_time()
    for data in (
        jpeg[:2] + b"\xff\xe1\0\2" * many + jpeg[2:],
        jpeg[:2] + (b"\xff\xe1\4\0Exif\0\0" + bytes(1016)) * 8000 + jpeg[2:],
        jpeg[:2] + b"\xff\xfe\0\2" + b"\1" * many + jpeg[2:],
        png(np.zeros((1, 1, 3), np.uint8), 2, files.chunk(b"prVt", b"") * (many // 4)),
        gif[:frame] + b"!\xfe" + b"\1a" * many + b"\0" + gif[frame:],
        tiff(strips, bytes(8 * many)),
        tiff(strips, bytes(8 * many), ">"),
        big,
        files.jpeg_of_scans(101),
        files.jpeg_of_scans(22, 7000),
    ):
        assert code(data, fast) == "image_undecodable"
    assert time.process_time() - started < 3
    for usual in (files.jpeg_of_scans(100, 256), files.jpeg_of_scans(21, 7000)):
        assert decode(usual, RECIPE, 10**8, fast).warnings == ()
    scans = b"\xff\xda\0\2" * 200
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(scans)) + scans
    aside = jpeg[:2] + comment + jpeg[2:] + b"\0\0" + scans
    assert near(decode(aside, RECIPE, 10**6, fast), LEFT, RIGHT, 60), "no scans of its own"
    frames = gif[:frame] + gif[frame:-1] * (many // 16) + b";"
    started = time.process_time()
    assert decode(frames, RECIPE, 10**6, fast).warnings == ("first_frame",)
    assert time.process_time() - started < 0.2, "the frames are not counted"


@both
def test_strips_and_dots(fast: bool) -> None:
    for size in ((1, 10_000), (10_000, 1), (1, 1), (2, 3), (1, 100_000)):
        for kind in ("PNG", "TIFF", "BMP"):
            assert colour_of(encoded(Image.new("RGB", size, (9, 99, 199)), kind), fast) == ([9, 99, 199], ())
    recipe = Preprocessing()
    for size in ((1, 10_000), (10_000, 1)):
        data = encoded(Image.new("RGB", size), "JPEG")
        assert decode(data, recipe, 10**6, fast).pixels.shape == (224, 224, 3)
        assert grown(data, fast) < 200 << 20, "resized whole before it is cropped it would be 256 x 2,560,000"


STARTED: list[str] = []


def test_no_program_is_started() -> None:
    """Not even for the formats that Pillow hands to others: Ghostscript for EPS."""
    sys.addaudithook(lambda event, _: STARTED.append(event) if event in PROGRAMS else None)
    for fast in (False, True):
        for data in (files.EPS, files.SVG, files.HEIC, *(encoded(halves(), kind) for kind in KINDS)):
            with contextlib.suppress(ServiceError):
                decode(data, RECIPE, 10**6, fast)
    assert STARTED == []


PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}


def test_memory() -> None:
    """The most that a pixel costs, in a process of its own; the figures of service/README.md."""
    width, height = 2700, 1600
    gradient = Image.linear_gradient("L").resize((width, height))
    clear = Image.merge("RGBA", [gradient] * 4)
    for data, fast, most in (
        (turned_by_exif(Image.merge("CMYK", [gradient] * 4), 6, "JPEG", progressive=True), False, 13),
        (turned_by_exif(Image.merge("RGB", [gradient] * 3), 6, "JPEG", progressive=True), True, 9),
        (turned_by_exif(clear, 6, "PNG", compress_level=1), True, 13),
        (png(np.zeros((height, width, 1), np.uint16), 0, files.chunk(b"tRNS", b"\0\0")), False, 13),
        (turned_by_exif(clear, 6, "WEBP", method=0, quality=20), False, 22),
    ):
        assert grown(data, fast) <= (most + 2) * width * height


def test_every_row_has_its_test() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(test_\w+)` \|", (root / "service" / "README.md").read_text())
    through_the_service = {"test_wrong_name"}
    here = {name for name in globals() if name.startswith("test_")} - {"test_every_row_has_its_test", "test_memory"}
    assert len(named) == len(set(named))
    assert set(named) == here | through_the_service
    for name in through_the_service:
        assert f"def {name}(" in (root / "tests" / "integration" / "test_images.py").read_text()
