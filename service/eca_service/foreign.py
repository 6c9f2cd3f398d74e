"""What bytes are that begin like no image that is decoded: named, so that their sender knows what to do."""

from __future__ import annotations

import re

BEGINNING = 512  # bytes that are looked at
CONVERT = "convert it to JPEG or PNG"
KINDS = tuple(
    (re.compile(signature, re.DOTALL), what, remedy)
    for signature, what, remedy in (
        (rb"....ftyp(hei[cmsx]|hev[cx]|mif1|msf1)", "a HEIC image", CONVERT),
        (rb"....ftypavi[fs]", "an AVIF image", CONVERT),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", CONVERT),
        (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", CONVERT),
        (rb"8BPS", "a Photoshop file", CONVERT),
        (rb"%PDF-", "a PDF", CONVERT),
        (rb"%!PS", "PostScript", CONVERT),
        (rb"(?i)\s*<(!doctype )?html\b", "a web page", "save the image itself, not the page that shows it"),
        (rb"\s*<(.*<)?svg\b", "an SVG drawing", CONVERT),
        (rb"\x1f\x8b", "gzip", "unpack it, or over HTTP say so by Content-Encoding: gzip"),
        (rb'\s*\{\s*"', "JSON", "over HTTP say so by Content-Type: application/json"),
        (rb"(?i)--[^\r\n]+\r\ncontent-disposition:", "a form", "leave its Content-Type to the library that makes it"),
        (rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD", "base64", "send the bytes that it encodes"),
    )
)


def name_of(data: bytes) -> tuple[str, str] | None:
    """What the data begins like and what to do about it, as parts of a sentence; None where that is not known."""
    beginning = data[:BEGINNING]
    return next(((what, remedy) for signature, what, remedy in KINDS if signature.match(beginning)), None)
