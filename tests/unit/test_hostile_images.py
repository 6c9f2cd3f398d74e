"""The image policy's rows on files that ask for more than they give: a test for each, and one for the memory of all."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import decode
from PIL import Image

from tests.unit import image_files as files
from tests.unit.image_files import KINDS, encoded, noise, png, tiff, turned_by_exif
from tests.unit.image_policy import LEFT, RECIPE, RIGHT, both, code, colour_of, halves, near

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
    decode(data, Preprocessing(), 10**8, fast, int(sys.argv[2]))
finally:
    print((peak_kb() - before) * 1024)
"""


def grown(data: bytes, fast: bool, status: int = 0, preview_px: int = 0) -> int:
    """Bytes by which decoding it makes a process of its own larger, at most; `status` 1: it cannot be decoded."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    command = [sys.executable, "-c", MEASURE, "fast" if fast else "reference", str(preview_px)]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    return int(done.stdout)


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
    at = 24 + 20 * len(tags + tile) + 8
    signed = [*tags, (322, 17, 1, 30_000), (323, 17, 1, 30_000), (324, 4, 1, at), (325, 4, 1, len(packed))]
    odd = struct.pack("<4sHHQQ", b"II+\0", 8, 0, 16, len(signed))
    odd += b"".join(struct.pack("<HHQQ", *tag) for tag in signed) + bytes(8) + packed
    assert code(odd, fast) == "image_undecodable", "of a type that libtiff knows, and Pillow does not"
    assert grown(odd, fast, status=1) < 32 << 20


@both
def test_packed_text(fast: bool) -> None:
    packed = zlib.compress(bytes(64 << 20), 9)
    black = np.zeros((40, 40, 3), np.uint8)
    for kind in (b"zTXt", b"iCCP"):
        data = png(black, 2, files.chunk(kind, b"a\0\0" + packed))
        assert code(data, fast) == "image_undecodable"
        assert grown(data, fast, status=1) < 32 << 20
    wide = zlib.compress(b"a" * ((1 << 20) - 4) + "\U0001f600".encode(), 9)  # so that each character takes four bytes
    data = png(black, 2, *(files.chunk(b"iTXt", b"%d\0\1\0\0\0" % key + wide) for key in range(60)))
    assert code(data, fast) == "image_undecodable"
    assert grown(data, fast, status=1) < 96 << 20


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
    frame_of_components = b"\xff\xc0" + struct.pack(">HBHHB", 65_534, 8, 32, 32, 3) + bytes(65_526)
    tables = b"\xff\xdb" + struct.pack(">H", 2 + 65 * 1000) + bytes([0, *[1] * 64]) * 1000
    orientations = tiff([(0x112, 5, many, files.tiff_data_at(1))], b"\1\0\0\0" * 2 * many)
    started = time.process_time()
    for data in (
        jpeg[:2] + b"\xff\xe1\0\2" * many + jpeg[2:],
        jpeg[:2] + (b"\xff\xe1\4\0Exif\0\0" + bytes(1016)) * 8000 + jpeg[2:],
        jpeg[:2] + b"\xff\xfe\0\2" + b"\1" * many + jpeg[2:],
        jpeg[:2] + frame_of_components * 32 + jpeg[2:],
        jpeg[:2] + tables * 100 + jpeg[2:],
        png(np.zeros((1, 1, 3), np.uint8), 2, files.chunk(b"prVt", b"") * (many // 4)),
        gif[:frame] + b"!\xfe" + b"\1a" * many + b"\0" + gif[frame:],
        tiff(strips, bytes(8 * many)),
        tiff(strips, bytes(8 * many), ">"),
        big,
        png(np.zeros((1, 1, 3), np.uint8), 2, files.chunk(b"eXIf", orientations)),
        encoded(halves(), "WEBP", exif=orientations),
        files.jpeg_of_scans(101),
        files.jpeg_of_scans(22, 7000),
    ):
        assert code(data, fast) == "image_undecodable"
    assert time.process_time() - started < 3
    for usual in (files.jpeg_of_scans(100, 256), files.jpeg_of_scans(21, 7000)):
        assert decode(usual, RECIPE, 10**8, fast).warnings == ()
    usual, many_scans = (files.tiff_of_a_jpeg(files.jpeg_of_scans(scans, 256), 256) for scans in (15, 98))
    assert decode(usual, RECIPE, 10**6, fast).warnings == ()
    assert code(many_scans, fast) == "image_undecodable", "each of many strips may be the same"
    scans = b"\xff\xda\0\2" * 200
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(scans)) + scans
    aside = jpeg[:2] + comment + jpeg[2:] + b"\0\0" + scans
    assert near(decode(aside, RECIPE, 10**6, fast), LEFT, RIGHT, 60), "no scans of its own"
    frames = gif[:frame] + gif[frame:-1] * (many // 16) + b";"
    started = time.process_time()
    assert decode(frames, RECIPE, 10**6, fast).warnings == ("first_frame",)
    assert time.process_time() - started < 0.2, "the frames are not counted"
    large = encoded(noise(4000, 3000).convert("L"), "GIF")
    assert len(large) > 255 * 50_000
    assert decode(large, RECIPE, 10**8, fast).warnings == (), "its pixels are in many parts too"
    at = files.tiff_data_at(6)
    page = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (0x8769, 4, 1, at)]
    within = struct.pack("<HHHIII", 1, 0x9999, 5, many // 4, at + 18, 0) + b"\1\0\0\0" * 2 * (many // 4)
    started = time.process_time()
    assert decode(tiff(page, within), RECIPE, 10**6, fast).warnings == ()
    assert time.process_time() - started < 0.2, "directories within a TIFF are not read"


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


def test_no_program_is_started() -> None:
    """Not even for the formats that Pillow hands to others: Ghostscript for EPS."""
    programs, started = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}, list[str]()
    sys.addaudithook(lambda event, _: started.append(event) if event in programs else None)
    for fast in (False, True):
        for data in (files.EPS, files.SVG, files.HEIC, *(encoded(halves(), kind) for kind in KINDS)):
            with contextlib.suppress(ServiceError):
                decode(data, RECIPE, 10**6, fast)
    assert started == []


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
        assert grown(data, fast, preview_px=1024) <= (max(most, 13) + 2) * width * height
