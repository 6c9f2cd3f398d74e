"""Images to verify an engine on: the user's photographs, or synthetic ones with the spectrum of photographs."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from eca_service.colours import to_rgb
from eca_service.contract import Preprocessing
from numpy.typing import NDArray
from PIL import Image, ImageOps

from eca_build.errors import BuildError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MOST = 128  # that are used unless more are asked for: they show what goes wrong, and take seconds
# For int8: with ranges of one image the demo networks lost up to 7 % of their answers, of images of one colour 38 %, of
# four images as much as of all.
LEAST = 8
LEAST_CONTRAST = 16  # between the values of a colour, for an image to show anything
MOST_PIXELS = 1 << 27  # of an image when it was resized: one of few pixels may be very long


def load(folder: Path, recipe: Preprocessing, most: int = MOST, option: str = "--images") -> NDArray[np.uint8]:
    """Up to `most` images below `folder`, evenly spread over the sorted names: uint8 [N, crop, crop, 3], RGB.

    Linked folders are followed. Raises BuildError, naming the command line's `option`, where the folder holds no image
    or one cannot be read.
    """
    paths = _picked(folder, most, option)
    if not paths:
        raise BuildError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); give another folder to {option}")
    return np.stack([_one(path, recipe) for path in paths])


def classes(folder: Path, labels: Sequence[str], most: int = MOST) -> NDArray[np.int64]:
    """The class of each image that `load` gives, int64 [N], as its folder or its file is called; -1 where neither is.

    An image of a dog is dog/photo.jpg or dog-1.jpg, where "dog" is one of `labels`; a label of two classes, as
    ImageNet's "crane", says neither.
    """
    times = Counter(labels)
    known = {label: index for index, label in enumerate(labels) if times[label] == 1}
    named = ((path.parent.name, path.stem, path.stem.rpartition("-")[0]) for path in _picked(folder, most))
    return np.asarray([next((known[name] for name in names if name in known), -1) for names in named], np.int64)


def _picked(folder: Path, most: int, option: str = "--images") -> list[Path]:
    def refuse(error: OSError) -> None:
        raise BuildError(f"the folder {error.filename} cannot be read: {error.strerror}; give another to {option}")

    paths: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = _identity(root)
        if not seen:
            seen = set(map(_identity, folder.absolute().parents)) - {here}
        if here in seen:  # a link led back, or another one there
            folders.clear()
            continue
        seen.add(here)
        folders.sort()
        paths += [Path(root, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    paths.sort()
    return [paths[i] for i in spread(len(paths), most)]


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def spread(count: int, most: int) -> NDArray[np.int64]:
    """The indices of up to `most` of `count`, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def _one(path: Path, recipe: Preprocessing) -> NDArray[np.uint8]:
    if path.is_fifo():  # which would be waited for
        raise BuildError(f"{path} cannot be read as an image (it is a pipe); remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is an error
            with Image.open(path) as opened:
                image = to_rgb(ImageOps.exif_transpose(opened), [])  # as the gateway does
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BuildError(f"{path} cannot be read as an image ({error}); remove it or mend it") from None
    scale = recipe.resize / min(image.size)
    size = (max(recipe.crop, round(image.width * scale)), max(recipe.crop, round(image.height * scale)))
    if size[0] * size[1] > MOST_PIXELS:
        raise BuildError(
            f"{path} is too elongated: with its shorter side at {recipe.resize} pixels it would be {size[0]} x "
            f"{size[1]}; remove it"
        )
    image = image.resize(size, Image.Resampling[recipe.filter.upper()])
    left, top = (size[0] - recipe.crop) // 2, (size[1] - recipe.crop) // 2
    return np.asarray(image.crop((left, top, left + recipe.crop, top + recipe.crop)))


def require_typical(images: NDArray[np.uint8], purpose: str) -> None:
    """BuildError, saying for which `purpose` int8 needs them, where fewer than LEAST of `images` differ and show
    anything.
    """
    different = set[bytes]()
    for image in images:
        if np.ptp(image, (0, 1)).max() >= LEAST_CONTRAST:
            different.add(hashlib.sha256(image.tobytes()).digest())
        if len(different) == LEAST:
            return
    raise BuildError(
        f"int8 needs at least {LEAST} images to {purpose} that differ and are not of one colour, and of the "
        f"{len(images)} given {len(different)} are such; give a folder of more to --images, and to --calibration where "
        "that is given"
    )


def enough(size: int) -> int:
    """How many synthetic images of `size` x `size` pixels are verified on: fewer of large ones, for memory and time."""
    return max(4, min(64, 64 * 512**2 // size**2))


def synthetic(size: int, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise whose amplitude falls as 1 / frequency, as a photograph's does: uint8 [count, size, size, 3]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1 / size
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        white = np.fft.rfft2(generator.standard_normal((3, size, size)))
        pink = np.fft.irfft2(white / frequency, s=(size, size))
        pink += 0.7 * pink.mean(0)
        pink /= np.abs(pink).max()
        image[:] = ((pink * 0.5 + 0.5) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return images
