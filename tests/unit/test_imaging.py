"""Decoding follows the recipe and the conversion policy, and refuses what it must."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from eca_service import bounds
from eca_service.contract import Preprocessing
from eca_service.errors import CODES, ServiceError, problem
from eca_service.imaging import decode
from PIL import Image

from tests.unit.image_files import encoded, jpeg_of_scans, noise

SOURCE = Path(__file__).parents[2] / "service" / "eca_service"
RECIPE = Preprocessing(resize=32, crop=32)
GRADIENT = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)


def test_right_size_passes_unchanged() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GRADIENT)), RECIPE, 10**6).pixels, GRADIENT)


def test_reference_recipe() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    wanted = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(decode(encoded(image), Preprocessing(), 10**6).pixels, np.asarray(wanted))


def test_a_webp_s_scale_is_no_part_of_its_size() -> None:
    """Two bits beside the sides, for whoever shows it (RFC 6386, 9.1): they claim no pixels."""
    plain = encoded(Image.fromarray(GRADIENT), "WEBP", quality=80)
    assert plain[12:16] == b"VP8 "
    scaled = bytearray(plain)
    scaled[27] |= 0x40  # the width's highest byte
    scaled[29] |= 0x40
    assert np.array_equal(decode(bytes(scaled), RECIPE, 32 * 32).pixels, decode(plain, RECIPE, 32 * 32).pixels)


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (7, 300), (256, 16_383)])
@pytest.mark.parametrize(("chunk", "options"), [(b"VP8 ", {}), (b"VP8L", {"lossless": True}), (b"VP8X", {"xmp": b"x"})])
def test_a_webp_claims_the_pixels_that_it_has(chunk: bytes, options: dict[str, object], size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "WEBP", method=0, quality=1, **options)
    assert (data[12:16], bounds.claimed_pixels(data, "WEBP")) == (chunk, size[0] * size[1])


def test_two_scans_are_several() -> None:
    assert [bounds.several_scans(jpeg_of_scans(scans)) for scans in (1, 2, 3)] == [False, True, True]


def test_a_jpeg_is_scaled_to_an_eighth_at_most() -> None:
    """While it is decoded: libjpeg has nothing less."""
    across, down = np.meshgrid(np.linspace(0, 255, 2000), np.linspace(0, 255, 1600))
    data = encoded(Image.fromarray(np.stack([across, down, across], -1).astype(np.uint8)), "JPEG", quality=95)
    slow, fast = (decode(data, RECIPE, 10**7, way).pixels.astype(int) for way in (False, True))
    assert np.abs(fast - slow).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_damaged_header_of_a_whole_file_is_not_taken_for_a_file_that_is_cut_off(kind: str) -> None:
    whole = encoded(Image.fromarray(GRADIENT), kind)
    with pytest.raises(ServiceError, match=f"^image_undecodable: the {kind} image's header is damaged$"):
        decode(whole[:12] + bytes(8) + whole[20:], RECIPE, 10**6)


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


def test_table_of_errors_is_complete() -> None:
    for name, kind in CODES.items():
        assert 400 <= kind.http < 600
        assert (kind.retry_after_s is not None) == (kind.http in {429, 503})
        body = problem(ServiceError(name, "why"), "id")
        assert body["status"] == kind.http
        assert body["code"] == name


def test_libtiff_says_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    """Its lines would stand amid the log's, which are JSON."""
    data = bytearray(encoded(noise(200, 200), "TIFF", compression="tiff_lzw"))
    data[3000:3100] = b"\xff" * 100
    with pytest.raises(ServiceError):
        decode(bytes(data), RECIPE, 10**6)
    assert capfd.readouterr() == ("", "")


def test_the_page_has_words_for_every_warning() -> None:
    known = {name for path in SOURCE.glob("*.py") for name in re.findall(r'notes\.append\("(\w+)"\)', path.read_text())}
    words = (SOURCE / "page" / "words.js").read_text()
    (notes,) = re.findall(r"^export const NOTES = \{(.*?)^\};", words, re.M | re.S)
    assert len(known) >= 6
    assert set(re.findall(r"^  (\w+):", notes, re.M)) == known
