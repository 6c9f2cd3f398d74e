"""What is no image that is decoded is told as what it is, where that is known."""

from __future__ import annotations

import base64
import gzip

import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import decode
from PIL import Image

from tests.unit import image_files as files
from tests.unit.image_files import encoded

RECIPE = Preprocessing(resize=32, crop=32)
IMAGE = Image.new("RGB", (32, 32), "red")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (files.HEIC, "a HEIC image"),
        (files.HEIC.replace(b"heic", b"mif1"), "a HEIC image"),
        (files.AVIF, "an AVIF image"),
        (encoded(IMAGE, "AVIF"), "an AVIF image"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "a JPEG XL image"),
        (encoded(IMAGE, "JPEG2000"), "a JPEG 2000 image"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop file"),
        (b"%PDF-1.7\n", "a PDF"),
        (files.EPS, "PostScript"),
        (b"\n<!DOCTYPE html>\n<p><svg></svg>", "a web page"),
        (b"<html lang='en'>", "a web page"),
        (files.SVG, "an SVG drawing"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg>\n<svg>", "an SVG drawing"),
        (gzip.compress(encoded(IMAGE)), "gzip"),
        (b'{"images": [{"b64": "..."}]}', "JSON"),
        (b'--abc\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n', "a form"),
        *((base64.b64encode(encoded(IMAGE, kind)), "base64") for kind in ("JPEG", "PNG", "WEBP", "GIF")),
        (b"data:image/png;base64,iVBORw0KGgo=", "base64"),
    ],
)
def test_other_formats_are_told_by_name(data: bytes, what: str) -> None:
    with pytest.raises(ServiceError, match=f"^unsupported_image_format: the {len(data)} bytes are {what}, not JPEG, "):
        decode(data, RECIPE, 10**6)


@pytest.mark.parametrize("data", [b"hello", b"PK\3\4" + bytes(99), bytes(99), b"<p>", b"<\xff" * 999, b" " * 9999])
def test_what_is_not_known_either_is_not_named(data: bytes) -> None:
    with pytest.raises(ServiceError, match=f"the {len(data)} bytes do not begin like JPEG, "):
        decode(data, RECIPE, 10**6)
