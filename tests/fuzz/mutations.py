"""Whole images of every kind, and without end mutated ones: the same for the same seed."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterator

import numpy as np

from tests.unit import image_files as files
from tests.unit.image_files import encoded, png, scene, tiff_of, turned_by_exif

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 50_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LAYOUTS = ("<H", ">H", "<I", ">I")
HEAD_BYTES = 200  # where most headers are


@functools.cache
def whole_images() -> tuple[bytes, ...]:
    """One file of each kind and feature that is decoded."""
    small = scene(64, 48)
    gray, clear = small.convert("L"), small.convert("RGBA")
    clear.putalpha(gray)
    frames = [scene(40, 30, seed) for seed in range(3)]
    cmyk = encoded(small.convert("CMYK"), "JPEG")
    profile = b"no profile, but long enough to be one" * 9
    deep = (np.asarray(gray).astype(np.uint16) * 257)[..., None]
    return (
        *(encoded(small, kind) for kind in files.KINDS),
        encoded(scene(400, 300), "JPEG", quality=80, restart_marker_blocks=8),
        encoded(small, "JPEG", progressive=True, icc_profile=profile),
        encoded(gray, "JPEG"),
        cmyk,
        files.as_ycck(cmyk),
        files.ARITHMETIC,
        files.ARITHMETIC_PROGRESSIVE,
        files.jpeg_of_scans(9, 64),
        *(turned_by_exif(small, 6, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        encoded(clear),
        encoded(small.convert("P"), transparency=bytes(range(0, 256, 2))),
        encoded(small.convert("1")),
        encoded(small, icc_profile=profile, pnginfo=None),
        png(deep, 0, files.chunk(b"tRNS", b"\0\1"), files.chunk(b"zTXt", b"a\0\0x\x9cKL\x04\x00\x00b\x00b")),
        png(np.repeat(deep, 3, 2), 2),
        encoded(clear, "WEBP", lossless=True, icc_profile=profile),
        *(encoded(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("GIF", "WEBP", "PNG", "TIFF")),
        encoded(gray, "GIF", transparency=3),
        encoded(gray, "BMP"),
        *(encoded(small, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        encoded(small.convert("1"), "TIFF", compression="group4"),
        tiff_of(np.asarray(gray).astype(np.float32) / 255, 3),
        tiff_of(np.repeat(deep, 3, 2), order=">"),
    )


def mutated(seed: int) -> Iterator[bytes]:
    """Whole images with one to four changes each, without end."""
    chance = random.Random(seed)
    images = whole_images()
    while True:
        data = bytearray(chance.choice(images))
        for _ in range(chance.randint(1, 4)):
            if data:
                chance.choice(CHANGES)(data, chance)
        yield bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(min(len(data), HEAD_BYTES) if chance.random() < 0.5 else len(data))


def _flip_a_bit(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set_a_byte(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _set_a_number(data: bytearray, chance: random.Random) -> None:
    layout, at = chance.choice(LAYOUTS), _place(data, chance)
    size = struct.calcsize(layout)
    if at + size <= len(data):
        struct.pack_into(layout, data, at, chance.choice(NUMBERS) & (256**size - 1))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _drop(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 12, 64))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = data[at : at + chance.choice((1, 4, 12, 64, 256))] * chance.choice((1, 1, 2, 50))


def _insert(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16, 100)))


def _splice(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(whole_images())
    data[_place(data, chance) :] = other[chance.randrange(len(other)) :]


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_a_bit,
    _set_a_byte,
    _set_a_number,
    _set_a_number,
    _cut,
    _drop,
    _repeat,
    _insert,
    _splice,
)
