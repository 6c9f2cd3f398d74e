"""Image files of every odd kind, made here: by Pillow where it writes them, byte by byte elsewhere."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# 16 x 16, left half (200, 40, 40), right half (40, 40, 200): `cjpeg -quality 90 -sample 1x1 -arithmetic [-progressive]`
# of libjpeg-turbo 2.1.5. Pillow reads arithmetic coding and does not write it.
_HEAD = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8X"
    "GBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/"
)
ARITHMETIC = base64.b64decode(
    _HEAD + "yQARCAAQABADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANIOpeCKxBG+rF5Lzc3sKWFmLnTXKP/Z"
)
ARITHMETIC_PROGRESSIVE = base64.b64decode(
    _HEAD + "ygARCAAQABADAREAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8ApB5MzBDbmvDTjfb5U2ntBU6o/8wABBAF/9oACAEBAAEFAsD/"
    "zAAEEQX/2gAIAQMBAT8BwP/MAAQRBf/aAAgBAgEBPwHA/8wABBAF/9oACAEBAAY/AsD/zAAEEAX/2gAIAQEAAT8hwP/aAAwDAQACAAMAAAAQ"
    "0jj/zAAEEQX/2gAIAQMBAT8QwP/MAAQRBf/aAAgBAgEBPxDA/8wABBAF/9oACAEBAAE/EMD/2Q=="
)
HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(200)
AVIF = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"avif", 0, b"mif1", b"miaf") + bytes(200)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file of `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB noise, the hardest to compress."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image with the spectrum of a photograph: noise whose amplitude falls as 1 / frequency."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width)
    frequency[0, 0] = 1
    white = np.fft.rfft2(generator.standard_normal((3, height, width)))
    pink = np.fft.irfft2(white / frequency, s=(height, width))
    pink += pink.mean(0, keepdims=True)
    pink *= 55 / pink.std()
    return Image.fromarray(np.clip(pink.transpose(1, 2, 0) + 120, 0, 255).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG's chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: NDArray[np.generic], colour: int, *chunks: bytes, claimed: tuple[int, int] | None = None, depth: int = 0
) -> bytes:
    """A PNG of uint8 or uint16 [h, w, channels]; `colour` is its colour type, `chunks` come before the pixels.

    `claimed` is the (width, height) in its header, where that should be another, and so is `depth`, bits of a sample.
    """
    height, width = samples.shape[:2]
    depth = depth or 8 * samples.dtype.itemsize
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1)
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *(claimed or (width, height)), depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: Sequence[tuple[int, int, int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of (tag, type, count, value) and what follows them: its place is `tiff_data_at(len(tags))`."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(order + ("HHIHxx" if kind == 3 and n == 1 else "HHII"), t, kind, n, v) for t, kind, n, v in tags
    )
    return mark + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + data


def tiff_data_at(tags: int) -> int:
    """Where the data of a TIFF with so many tags begins."""
    return 8 + 2 + 12 * tags + 4


def tiff_of(samples: NDArray[np.generic], sample_format: int = 1, order: Literal["<", ">"] = "<") -> bytes:
    """An uncompressed TIFF of [h, w] or [h, w, 3] in its own type; format 1 unsigned, 2 signed, 3 float."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    bits = 8 * samples.dtype.itemsize
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    at = tiff_data_at(10)
    depth = (258, 3, 3, at + len(data)) if channels == 3 else (258, 3, 1, bits)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), depth, (259, 3, 1, 1), (262, 3, 1, 2 if channels == 3 else 1),
        (273, 4, 1, at), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, sample_format),
    ]  # fmt: skip
    return tiff(tags, data + struct.pack(order + "HHH", bits, bits, bits), order)


def tiff_of_a_jpeg(jpeg: bytes, side: int) -> bytes:
    """A TIFF whose one strip is a gray JPEG of that side."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1)]
    return tiff([*tags, (273, 4, 1, tiff_data_at(7)), (279, 4, 1, len(jpeg))], jpeg)


def turned_by_exif(image: Image.Image, orientation: int, kind: str = "PNG", **options: object) -> bytes:
    """A file whose EXIF says `orientation`."""
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif.tobytes(), **options)


def as_ycck(cmyk_jpeg: bytes) -> bytes:
    """A CMYK JPEG by Adobe's rules, relabelled as YCCK in its Adobe segment: the same samples mean other inks."""
    at = cmyk_jpeg.index(b"Adobe") + 11
    return cmyk_jpeg[:at] + b"\2" + cmyk_jpeg[at + 1 :]


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    whole = encoded(noise(16, 16), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def jpeg_of_scans(scans: int, side: int = 2048) -> bytes:
    """A progressive gray JPEG that refines its coefficients `scans` times, in some 60 bytes each."""
    blocks = (side // 8) ** 2

    def table(number: int, symbol: int) -> bytes:  # one code, of one bit: 0
        return b"\xff\xc4" + struct.pack(">HB", 20, number) + bytes([1] + [0] * 15) + bytes([symbol])

    def scan(first: int, last: int, bits: bytes) -> bytes:
        return b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, first, last, 0) + bits

    runs = -(-blocks // 32767)  # of blocks without coefficients: the code, then 14 ones
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    empty = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    return b"".join(
        [
            b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64),
            b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0),
            table(0, 0) + table(0x10, 0xE0) + scan(0, 0, bytes(-(-blocks // 8))),
            scan(1, 63, empty) * (scans - 1),
            b"\xff\xd9",
        ]
    )


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP header of that size, and nothing behind it."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sizes
    return b"RIFF" + struct.pack("<I", len(body)) + body
