"""What preprocessing does to accuracy: the same trained network behind right and wrong ways from file to pixels.

    python -m tests.load.accuracy --cifar ARCHIVE [--photos FOLDER] [--most 10000] [--json FILE]

CIFAR-10's test images enlarged to 320 x 320 and stored as JPEG of quality 90 stand for photographs; a demo network sees
them at 32 x 32, where it was trained. They hold no detail finer than their original pixels, so they cannot tell one
filter from another: antialiasing only blurs them. For that the photographs are there, on which the answers of each way
are compared with the reference's, and counted right where a photograph's name says that it shows one of the classes.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from eca_build.checkpoint import load as load_checkpoint
from eca_build.export import reference
from eca_build.recipes import default_recipe
from eca_service.contract import Preprocessing
from eca_service.imaging import decode
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from tests.load.environment import Written
from tests.load.preprocessing import CLASSES, MOST_PIXELS, ROOT, cifar, environment, jpegs, table
from tests.unit.image_files import encoded, turned_by_exif

ENLARGED_PX = 320
WIDE_PX = 426  # 4:3
Pixels = NDArray[np.uint8]
# What photographs of ImageNet's classes show of CIFAR's: the range of WordNet ids of dogs, and single ones by name.
DOGS = ("n02085620", "n02113978")
SHOWN = {
    "bird": ("hen", "bulbul", "owl", "grouse", "macaw", "toucan", "stork", "gallinule", "pelican"),
    "frog": ("tailed_frog",),
    "automobile": ("minivan",),
    "truck": ("tow_truck",),
}


@dataclass
class Row:
    """Accuracy in percent on CIFAR's test images, and top-1 agreement with the reference on photographs."""

    way: str
    accuracy: float | None = None
    points_lost: float | None = None
    photographs_agree: float | None = None
    photographs_right: str = ""


def opened(data: bytes) -> Image.Image:
    """RGB, as stored: not turned."""
    image: Image.Image = Image.open(io.BytesIO(data)).convert("RGB")
    return image


def centre(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def filtered(resampling: Image.Resampling) -> Callable[[bytes], Pixels]:
    """The recipe with another of Pillow's filters."""
    return lambda data: np.asarray(centre(opened(data)).resize((32, 32), resampling))


def sampled(data: bytes) -> Pixels:
    """Bilinear between the four pixels around each place, however far the places are apart: no antialiasing."""
    pixels = np.asarray(centre(opened(data))).astype(np.float64)
    places = np.clip((np.arange(32) + 0.5) * len(pixels) / 32 - 0.5, 0, len(pixels) - 1)
    low = np.minimum(places.astype(int), len(pixels) - 2)
    part = places - low
    rows = pixels[low] * (1 - part)[:, None, None] + pixels[low + 1] * part[:, None, None]
    found = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    rounded: Pixels = np.rint(found).astype(np.uint8)
    return rounded


def draft(data: bytes) -> Pixels:
    """Scaled while decoded to the smallest size that is large enough, then resized: the careless use of it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (32, 32))
        return np.asarray(centre(image.convert("RGB")).resize((32, 32), Image.Resampling.BILINEAR))


def squashed(data: bytes) -> Pixels:
    """The whole image, its sides out of proportion."""
    return np.asarray(opened(data).resize((32, 32), Image.Resampling.BILINEAR))


def zoomed(corner: bool) -> Callable[[bytes], Pixels]:
    """ImageNet's habit of 256 to 224, which this network was not trained with; from the middle or the corner."""

    def way(data: bytes) -> Pixels:
        image = centre(opened(data)).resize((37, 37), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((0, 0, 32, 32) if corner else (2, 2, 34, 34)))

    return way


def display_p3(image: Image.Image) -> Image.Image:
    """The same colours in the numbers of a wide-gamut photograph (Display P3), whose profile would say so."""
    linear = (np.asarray(image) / 255.0) ** 2.2
    matrix = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
    return Image.fromarray(np.rint(255 * np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)).astype(np.uint8))


def enlarged(data: bytes) -> Image.Image:
    """A test image as if it were a photograph."""
    return opened(data).resize((ENLARGED_PX, ENLARGED_PX), Image.Resampling.BICUBIC)


def wide(data: bytes) -> Image.Image:
    """The same with more at both sides, which a centre crop takes away: its mirror image."""
    edge = (WIDE_PX - ENLARGED_PX) // 2
    return Image.fromarray(np.pad(np.asarray(enlarged(data)), ((0, 0), (edge, edge), (0, 0)), mode="reflect"))


def jpeg(make: Callable[[bytes], Image.Image] = enlarged, quality: int = 90) -> Callable[[bytes], bytes]:
    """Stores what `make` makes of a test image."""
    return lambda data: encoded(make(data), "JPEG", quality=quality)


def turned(data: bytes) -> bytes:
    """A photograph whose camera was held on its side: its pixels are turned, and EXIF says so."""
    return turned_by_exif(enlarged(data).transpose(Image.Transpose.ROTATE_90), 6, "JPEG", quality=90)


@dataclass(frozen=True)
class Way:
    """From file to pixels; how a test image is stored for it, if test images can tell; whether photographs can."""

    name: str
    pixels: Callable[[bytes], Pixels]
    store: Callable[[bytes], bytes] | None = None
    on_photographs: bool = True


def ways(recipe: Preprocessing) -> list[Way]:
    """All that are compared; the first is the reference."""

    def exact(data: bytes) -> Pixels:
        return decode(data, recipe, MOST_PIXELS).pixels

    def fast(data: bytes) -> Pixels:
        return decode(data, recipe, MOST_PIXELS, fast=True).pixels

    return [
        Way("reference", exact, jpeg()),
        Way("fast", fast, jpeg()),
        Way("Pillow's bicubic", filtered(Image.Resampling.BICUBIC)),
        Way("Pillow's Lanczos", filtered(Image.Resampling.LANCZOS)),
        Way("Pillow's box", filtered(Image.Resampling.BOX)),
        Way("bilinear without antialiasing", sampled),
        Way("nearest pixel", filtered(Image.Resampling.NEAREST)),
        Way("JPEG scaled as far as it goes while decoded", draft, jpeg()),
        Way("EXIF followed", exact, turned, False),
        Way("EXIF ignored", filtered(Image.Resampling.BILINEAR), turned, False),
        Way("4:3, centre crop", exact, jpeg(wide), False),
        Way("4:3, squashed to a square", squashed, jpeg(wide)),
        Way("resized to 8/7, centre crop", zoomed(corner=False), jpeg()),
        Way("resized to 8/7, corner crop", zoomed(corner=True), jpeg()),
        Way("red and blue swapped", lambda data: exact(data)[..., ::-1], jpeg()),
        Way("Display P3, profile ignored", exact, jpeg(lambda data: display_p3(enlarged(data))), False),
        Way("gray", exact, jpeg(lambda data: ImageOps.grayscale(enlarged(data))), False),
        Way("JPEG of quality 50", exact, jpeg(quality=50), False),
        Way("JPEG of quality 10", exact, jpeg(quality=10), False),
    ]


def shown(path: Path) -> int | None:
    """Which of CIFAR's classes a photograph of ImageNet shows, by its file's name."""
    number, _, name = path.stem.partition("_")
    if DOGS[0] <= number <= DOGS[1]:
        return CLASSES.index("dog")
    return next((CLASSES.index(label) for label, words in SHOWN.items() for word in words if word in name), None)


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.option(
    "--cifar", "archive", required=True, type=click.Path(path_type=Path, exists=True), help="CIFAR-10's JPEGs"
)
@click.option("--photos", type=click.Path(path_type=Path, exists=True, file_okay=False), help="ImageNet's photographs")
@click.option("--network", default="resnet14-eca", show_default=True, help="one of build/demo")
@click.option("--most", default=10_000, show_default=True, type=click.IntRange(1), help="most test images")
@click.option("--json", "json_file", type=Written(), help="where the figures go")
def main(archive: Path, photos: Path | None, network: str, most: int, json_file: Path | None) -> None:
    """Measures; see the module's first lines."""
    checkpoint = load_checkpoint(ROOT / "build" / "demo" / f"{network}.safetensors")
    recipe = default_recipe(checkpoint.spec.arch)
    tests, labels = cifar(archive, most)
    pictures = [(path.read_bytes(), shown(path)) for path in jpegs(photos)] if photos else []

    def best(images: Iterable[Pixels], recipe: Preprocessing = recipe) -> NDArray[Any]:
        batch = torch.from_numpy(np.stack([np.ascontiguousarray(image) for image in images]))
        found: NDArray[Any] = reference(checkpoint.network, recipe, batch, 250).argmax(1).numpy()
        return found

    def accuracy(images: Iterable[Pixels], recipe: Preprocessing = recipe) -> float:
        return 100 * float((best(images, recipe) == labels).mean())

    rows = [Row("the test images as they are, 32 x 32", accuracy(np.asarray(opened(data)) for data in tests))]
    first = ways(recipe)[0]
    expected = accuracy(first.pixels(jpeg()(data)) for data in tests)
    whole = best(first.pixels(data) for data, _ in pictures) if pictures else None
    for way in tqdm(ways(recipe), disable=None):
        row = Row(way.name)
        if way.store:
            row.accuracy = accuracy(way.pixels(way.store(data)) for data in tests)
            row.points_lost = expected - row.accuracy
        if way.on_photographs and pictures:
            answers = best(way.pixels(data) for data, _ in pictures)
            known = [answer == label for answer, (_, label) in zip(answers, pictures, strict=True) if label is not None]
            row.photographs_agree = 100 * float((answers == whole).mean())
            row.photographs_right = f"{sum(known)} of {len(known)}"
        rows.append(row)
    for name, mean, std in (
        ("ImageNet's mean and deviation", Preprocessing().mean, Preprocessing().std),
        ("no mean and deviation", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ):
        other = recipe.model_copy(update={"mean": mean, "std": std})
        found = accuracy((first.pixels(jpeg()(data)) for data in tests), other)
        rows.append(Row(name, found, expected - found))
    facts = environment("accuracy")
    print(table(rows))
    print("\n" + "\n".join(f"{key}: {value}" for key, value in facts.items()))
    if json_file:
        json_file.write_text(json.dumps({"environment": facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
