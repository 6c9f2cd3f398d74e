"""JPEGs of mixed sizes to send: photographs from a folder, or images with their spectrum made by our own code."""

from __future__ import annotations

import io
from pathlib import Path

import click
import numpy as np
from eca_build.images import synthetic
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import decode
from PIL import Image

SIZES = ((320, 240), (500, 375), (375, 500), (640, 480), (1024, 768), (1600, 1200))
MOST_PIXELS = 1 << 28
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def photographs(folder: Path | None = None, most: int = 64) -> tuple[list[bytes], str]:
    """Up to `most` JPEGs, evenly spread over the sorted names, and where they are from, in words.

    `folder` None: photographs beside the repository where there are some, else made ones. click.UsageError where the
    folder has no JPEG, or one that cannot be decoded: it would be refused, after minutes.
    """
    chosen = folder or (PHOTOS if PHOTOS.is_dir() else None)
    if chosen is None:
        return made(most), f"{most} made images with the spectrum of photographs"
    paths = sorted(p for p in chosen.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    if not paths:
        raise click.UsageError(f"{chosen} holds no JPEG")
    picked = []
    for index in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int):
        picked.append(paths[index].read_bytes())
        try:
            decode(picked[-1], Preprocessing(), MOST_PIXELS)
        except ServiceError as error:
            raise click.UsageError(f"{paths[index]} cannot be sent: {error.detail}") from None
    return picked, f"{len(picked)} photographs, {np.mean([len(one) for one in picked]) / 1000:.0f} KB in the mean"


def made(count: int, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0) -> list[bytes]:
    """`count` JPEGs (quality 90) of the sizes in turn, each in pixels (width, height)."""
    noise = [Image.fromarray(pixels) for pixels in synthetic(512, min(count, 8), seed)]
    files = []
    for index in range(count):
        file = io.BytesIO()
        noise[index % len(noise)].resize(sizes[index % len(sizes)]).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
