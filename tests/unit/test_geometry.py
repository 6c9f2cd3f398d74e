"""What the network saw of an image, found again in the file's own pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.geometry import Box, as_stored, crop_box
from eca_service.imaging import TURNS, decode
from PIL import Image

from tests.unit.image_files import noise, turned_by_exif

RECIPE = Preprocessing(resize=64, crop=48)


def test_the_crop_is_the_centre_of_the_shorter_side() -> None:
    assert crop_box((400, 300), Preprocessing(resize=300, crop=300)) == Box(50, 0, 350, 300)
    box = crop_box((400, 300), Preprocessing(resize=256, crop=224))
    assert (box.right - box.left, box.bottom - box.top) == pytest.approx((224 * 400 / 341, 262.5))
    assert crop_box((1, 1), Preprocessing(resize=32, crop=32)) == Box(0, 0, 1, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_the_network_saw_lies_in_the_stored_box(orientation: int) -> None:
    """A file whose pixels are white in the box alone is all white to the network, and one pixel more is not needed."""
    upright = (96, 64) if orientation < 5 else (64, 96)
    box = as_stored(crop_box(upright, RECIPE), upright, orientation)
    left, top, right, bottom = (round(edge) for edge in (box.left, box.top, box.right, box.bottom))
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    found = decode(out.getvalue(), RECIPE, 10**6, preview_px=1000)
    assert (found.size, found.orientation) == (upright, orientation)
    assert found.preview is not None
    assert found.preview.shape == (*upright[::-1], 3)
    inner = found.pixels[1:-1, 1:-1]
    assert inner.min() == 255
    assert pixels.mean() < 255 * 0.5, "the box is a part of the image alone"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_no_box_reaches_out_of_the_file(orientation: int) -> None:
    """By a rounding either: no library crops there, and a photo that was turned could not be decoded."""
    recipe = Preprocessing(resize=224, crop=224)
    for side in range(1, 700):
        for upright in ((side, side), (side, 2 * side), (3 * side, 2 * side)):
            box = as_stored(crop_box(upright, recipe), upright, orientation)
            width, height = upright if orientation < 5 else upright[::-1]
            assert 0 <= box.left < box.right <= width
            assert 0 <= box.top < box.bottom <= height
    found = decode(turned_by_exif(noise(29, 29), orientation), recipe, 10**6, fast=True)
    assert found.pixels.shape == (224, 224, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_off_the_centre_is_found_in_the_file(orientation: int) -> None:
    stored = noise(30, 20)
    turn = TURNS.get(orientation)
    upright = stored if turn is None else stored.transpose(turn)
    kept = upright.crop((3, 4, 9, 15))
    box = as_stored(Box(3, 4, 9, 15), upright.size, orientation)
    cut = stored.crop((int(box.left), int(box.top), int(box.right), int(box.bottom)))
    assert (cut if turn is None else cut.transpose(turn)).tobytes() == kept.tobytes()


def test_a_preview_is_no_larger_than_asked() -> None:
    out = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(out, "PNG")
    preview = decode(out.getvalue(), RECIPE, 10**6, preview_px=90).preview
    assert preview is not None
    assert preview.shape == (60, 90, 3)
    assert decode(out.getvalue(), RECIPE, 10**6).preview is None
