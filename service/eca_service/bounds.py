"""What an image file may ask of its decoder: looked at in its bytes, before any pixel is decoded.

A small file can claim many pixels, and a large one can hold millions of tiny parts; both cost the decoder far more than
their bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Iterator

import numpy as np

MOST_READS = 100_000  # about 0.3 s of Pillow's header parsers, which go from part to part
MORE_READS_EACH = 100  # bytes of a file: a GIF's pixels are in parts of 255, and each is read twice
MOST_SCANS = 100  # a progressive JPEG has about ten; each costs a pass over all coefficients
MOST_SCANNED_PX, USUAL_SCANS = 1 << 30, 20  # so a large one may have fewer: three seconds are enough
MOST_EXIF = 10  # segments of a JPEG, which has one; Pillow joins them, and makes objects of their numbers
MOST_TABLES = 65_536  # bytes of a JPEG's frame and tables, far more than usual; Pillow makes objects of them
MOST_NUMBERS = 65_536  # in one tag of a TIFF, as EXIF is one: one strip a row for the highest image
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"(II|MM)([*+]\0|\0[*+])"),
}
_TABLES = re.compile(rb"\xff[\xc0-\xcf\xdb\xde]..", re.DOTALL)  # the head of such a segment, with its length
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_TYPES_OF_BYTES = (1, 2, 7)  # whose values stay the bytes that they are
_SHORT, _LONG = 3, 4
TILE_SIDES = (322, 323)


class TooManyParts(Exception):
    """A file of so many parts that going through them alone would take long; the message says which parts."""


class Parts(io.BytesIO):
    """The bytes of an image as a file that may be read MOST_READS times, of a large one a little more often, MOST_EXIF
    times from where EXIF begins, and as far as MOST_TABLES where a JPEG's parser reads tables; then it raises
    TooManyParts.
    """

    reads = exif = tables = 0

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._most_reads = MOST_READS + len(data) // MORE_READS_EACH

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self.reads += 1
        if self.reads > self._most_reads:
            raise TooManyParts(f"it has more than {self._most_reads} parts")
        at = self.tell()
        found = super().read(size)
        length = int.from_bytes(self._data[max(0, at - 2) : at], "big")
        if len(found) == length - 2 and at >= 4 and _TABLES.match(self._data, at - 4, at):  # as no other reader reads
            self.tables += len(found)
            if self.tables > MOST_TABLES:
                raise TooManyParts(f"it has more than {MOST_TABLES} bytes of tables")
        self.exif += found.startswith(b"Exif\0\0")
        if self.exif > MOST_EXIF:
            raise TooManyParts(f"it has more than {MOST_EXIF} segments of EXIF")
        return found


def format_of(data: bytes) -> str | None:
    """The format that the first bytes are the signature of, whatever the file is called."""
    return next((name for name, signature in SIGNATURES.items() if signature.match(data)), None)


def ends_early(data: bytes, kind: str) -> bool:
    """Whether a damaged file of format `kind` lacks its end, as far as the format can tell."""
    if kind == "JPEG":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda") or b"\xff\xda" not in data
    if kind == "PNG":
        return b"IEND" not in data[-1024:]
    if kind == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") >= len(data)  # where a TIFF's tags are


def claimed_pixels(data: bytes, kind: str) -> int:
    """The pixels that a WebP's header claims, 0 where it is none: its decoder takes their memory when it is opened."""
    chunk, head = data[12:16], data[20:30]
    if kind != "WEBP":
        return 0
    if chunk == b"VP8X":
        return (int.from_bytes(head[4:7], "little") + 1) * (int.from_bytes(head[7:10], "little") + 1)
    if chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (int.from_bytes(head[6:8], "little") & 0x3FFF) * (int.from_bytes(head[8:10], "little") & 0x3FFF)


def require_few_parts(data: bytes, kind: str) -> None:
    """Raises TooManyParts for a TIFF with a tag of many numbers, and ValueError for one whose tiles are of a size that
    Pillow may not know: of other types than TIFF's own libtiff takes it too, and the memory for it.
    """
    if kind != "TIFF":
        return
    for tag, number_type, numbers in _tags(data):
        if number_type not in _TYPES_OF_BYTES and numbers > MOST_NUMBERS:
            raise TooManyParts(f"it has more than {MOST_NUMBERS} strips, tiles, or numbers in another tag")
        if tag in TILE_SIDES and number_type not in (_SHORT, _LONG):
            raise ValueError("the size of its tiles is neither SHORT nor LONG")


def require_few_scans(data: bytes, pixels: int) -> None:
    """Raises TooManyParts for a JPEG of more scans than one of so many pixels may have."""
    most = min(MOST_SCANS, max(USUAL_SCANS, MOST_SCANNED_PX // pixels))
    if _many_scans(data, most):
        raise TooManyParts(f"it has more than {most} scans")


def several_scans(data: bytes) -> bool:
    """Whether a JPEG has several scans, as progressive ones do: its coefficients are kept while it is decoded."""
    return data.count(b"\xff\xda") > 1 and _more_scans(data, 1)


def _many_scans(data: bytes, most: int) -> bool:
    marker = 0xFF | _SOS << 8
    pairs = [np.frombuffer(data, "<u2", (len(data) - at) // 2, at) for at in range(min(2, len(data) - 1))]
    if sum(np.count_nonzero(pair == marker) for pair in pairs) <= most:
        return False  # the usual case, found in microseconds; more may be chance in what follows the image
    return _more_scans(data, most)


def _more_scans(data: bytes, most: int) -> bool:
    at, scans = 2, 0
    for _ in range(MOST_READS):
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _EOI:
            return False
        at = found.end()
        if found[1][0] not in (_SOI, 0x01):
            at += int.from_bytes(data[at : at + 2], "big")
        scans += found[1][0] == _SOS
        if scans > most:
            return True
    return True


def _tags(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, type and count of all that a TIFF's first directory holds, as far as it is there."""
    order = "<" if data[:2] == b"II" else ">"
    at, head, entry = ("8xQ", "Q", "HHQ8x") if data[2:3] == b"+" else ("4xI", "H", "HHI4x")  # "+" is BigTIFF
    with contextlib.suppress(struct.error, OverflowError):  # the decoder will say what is wrong with it
        (start,) = struct.unpack_from(order + at, data)
        (entries,) = struct.unpack_from(order + head, data, start)
        first, size = start + struct.calcsize(order + head), struct.calcsize(order + entry)
        for index in range(min(entries, MOST_READS)):
            yield struct.unpack_from(order + entry, data, first + index * size)
