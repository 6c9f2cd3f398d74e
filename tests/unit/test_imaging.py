"""Decoding follows the recipe and the conversion policy, and refuses what it must."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import CODES, ServiceError, problem
from eca_service.imaging import decode
from PIL import Image

RECIPE = Preprocessing(resize=32, crop=32)
GRADIENT = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_right_size_passes_unchanged() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GRADIENT)), RECIPE, 10**6).pixels, GRADIENT)


def test_reference_recipe() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    wanted = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(decode(encoded(image), Preprocessing(), 10**6).pixels, np.asarray(wanted))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    image = Image.fromarray(GRADIENT)
    exif = image.getexif()
    exif[0x0112] = orientation
    got = decode(encoded(image, exif=exif.tobytes()), RECIPE, 10**6)
    turned = {
        1: GRADIENT,
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.transpose(1, 0, 2),
        6: np.rot90(GRADIENT, -1),
        7: GRADIENT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(GRADIENT),
    }
    assert np.array_equal(got.pixels, turned[orientation])
    assert got.warnings == (("exif_rotated",) if orientation > 1 else ())


@pytest.mark.parametrize(
    ("image", "kind", "rgb", "warnings"),
    [
        (Image.new("L", (40, 40), 77), "PNG", (77, 77, 77), ()),
        (Image.new("1", (40, 40), 1), "PNG", (255, 255, 255), ()),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "PNG", (255, 255, 255), ("alpha_on_white",)),
        (Image.new("RGBA", (40, 40), (9, 8, 7, 255)), "PNG", (9, 8, 7), ()),
        (Image.new("LA", (40, 40), (0, 0)), "PNG", (255, 255, 255), ("alpha_on_white",)),
        (Image.new("P", (40, 40), 0), "PNG", (0, 0, 0), ()),
        (Image.fromarray(np.full((40, 40), 257 * 90, np.uint16)), "PNG", (90, 90, 90), ("reduced_to_8_bit",)),
        (Image.new("CMYK", (40, 40), (0, 0, 0, 255)), "TIFF", (0, 0, 0), ("converted_cmyk",)),
        (Image.new("RGB", (40, 40), (1, 2, 3)), "BMP", (1, 2, 3), ()),
        (Image.new("RGB", (40, 40), (200, 200, 200)), "WEBP", (200, 200, 200), ()),
    ],
)
def test_conversion_policy(image: Image.Image, kind: str, rgb: tuple[int, int, int], warnings: tuple[str, ...]) -> None:
    got = decode(encoded(image, kind), RECIPE, 10**6)
    assert np.abs(got.pixels.astype(int) - rgb).max() <= 1
    assert got.warnings == warnings


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    got = decode(data, RECIPE, 10**6)
    assert got.pixels[0, 0].tolist() == [255, 0, 0]
    assert got.warnings == ("first_frame",)


def code(data: bytes, max_pixels: int = 10**6) -> str:
    with pytest.raises(ServiceError) as caught:
        decode(data, RECIPE, max_pixels)
    return caught.value.code


def test_what_is_refused() -> None:
    photo = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)), "JPEG")
    assert code(b"") == "unsupported_image_format"
    assert code(b"hello") == "unsupported_image_format"
    assert code(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "unsupported_image_format"
    assert code(photo, max_pixels=99 * 98) == "image_too_many_pixels"
    for tenth in range(3, 10):
        assert code(photo[: len(photo) * tenth // 10]) == "image_truncated"


def test_mutated_files_are_never_a_surprise() -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    statuses = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = np.frombuffer(encoded(image, kind), np.uint8)
        for _ in range(150):
            mutated = whole.copy()
            mutated[random.integers(0, len(whole), 4)] = random.integers(0, 256, 4)
            try:
                decode(mutated.tobytes(), RECIPE, 10**6)
            except ServiceError as error:
                statuses.append(error.kind.http)
    assert len(statuses) > 50
    assert max(statuses) < 500


def test_bomb_is_refused_by_its_header_alone() -> None:
    small = encoded(Image.new("RGB", (1, 1)))
    ihdr = struct.pack(">II", 50_000, 50_000) + small[24:29]
    import zlib

    bomb = small[:16] + ihdr + struct.pack(">I", zlib.crc32(b"IHDR" + ihdr)) + small[33:]
    assert code(bomb) == "image_too_many_pixels"


def test_table_of_errors_is_complete() -> None:
    for name, kind in CODES.items():
        assert 400 <= kind.http < 600
        assert (kind.retry_after_s is not None) == (kind.http in {429, 503})
        body = problem(ServiceError(name, "why"), "id")
        assert body["status"] == kind.http
        assert body["code"] == name
