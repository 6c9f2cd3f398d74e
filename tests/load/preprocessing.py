"""Preprocessing alone: images a core and second in each way, and how far the fast way is from the reference.

    python -m tests.load.preprocessing [--photos FOLDER] [--cifar ARCHIVE] [--rounds 15] [--json FILE] [--csv FILE]

JPEG in, 224 x 224 pixels out; `decode alone` is libjpeg-turbo's whole decode and nothing more. The ways take turns in
each round, on the processor time of one decoding thread, which a busy neighbour changes little; two threads are timed
by the clock, for what the interpreter's lock leaves of the second. Photographs are taken as they are, and enlarged to
12 megapixels. Without `--photos` noise with the spectrum of photographs stands in for them.

The networks whose answers are compared are the trained ones in build/demo, made for 32 x 32 pixels of ten classes: on
photographs they are given 32 x 32, and 224 x 224 as far as convolution and pooling take any size. What they answer
there means little; how seldom the answer changes is the figure. On CIFAR's test images, enlarged to 320 x 320 and
stored as JPEG, so that they are scaled while decoded, accuracy is counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import random
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg
import torch
from eca_build.checkpoint import load as load_checkpoint
from eca_build.export import reference
from eca_build.recipes import default_recipe
from eca_service import jpeg, resampling
from eca_service.contract import Preprocessing
from eca_service.imaging import decode
from PIL import Image
from tqdm import tqdm

from tests.load.environment import Written
from tests.unit.image_files import encoded, scene

ROOT = Path(__file__).parents[2]
MOST_PIXELS = 10**8
LARGE_PX = 12e6
SHORTER_SIDES = (300, 700, 1100, 2100)  # the photographs again, resized and stored anew: more cases to agree on
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TIMED_IN_TWO_THREADS = {"decode alone", "reference", "fast"}
NETWORKS = ("resnet14-eca", "resnet14-se")
Way = Callable[[bytes], Any]


@dataclass(frozen=True)
class Speed:
    """Images by second of one core's time; the ratios are medians over rounds, with their 5th and 95th percentile."""

    images: str
    way: str
    per_core_s: float
    to_decode_alone: float
    to_decode_alone_5: float
    to_decode_alone_95: float
    to_reference: float
    to_reference_5: float
    to_reference_95: float
    two_threads: float


@dataclass(frozen=True)
class Parity:
    """Levels of 255 between a way and the reference, over all images and channels."""

    images: str
    way: str
    count: int
    mean: float
    share_over_2: float
    percentile_99_9: float
    largest: int


@dataclass(frozen=True)
class Agreement:
    """How many images a network answers alike in the fast way and by the reference; accuracies in percent, if known."""

    images: str
    network: str
    side_px: int
    count: int
    agree_percent: float
    reference_accuracy: float | None = None
    fast_accuracy: float | None = None


def follow(recipe: Preprocessing, fast: bool) -> Way:
    """The gateway's own preprocessing."""
    return lambda data: decode(data, recipe, MOST_PIXELS, fast).pixels


def without(way: Way, *libraries: tuple[Any, str]) -> Way:
    """The same where the libraries have no wheels."""

    def run(data: bytes) -> Any:
        kept = [(module, name, getattr(module, name)) for module, name in libraries]
        try:
            for module, name, _ in kept:
                setattr(module, name, None)
            return way(data)
        finally:
            for module, name, value in kept:
                setattr(module, name, value)

    return run


def ways_to(recipe: Preprocessing) -> dict[str, Way]:
    """By name; the first is what the others are compared with."""
    fast = follow(recipe, fast=True)
    simd, turbo = (resampling, "simd"), (jpeg, "simplejpeg")
    return {
        "reference": follow(recipe, fast=False),
        "fast": fast,
        "fast, no SIMD": without(fast, simd),
        "fast, Pillow alone": without(fast, simd, turbo),
    }


def jpegs(folder: Path) -> list[Path]:
    """The JPEG files in a folder, by name. Raises click.UsageError where there is none."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in {".jpg", ".jpeg"}]
    if not found:
        raise click.UsageError(f"{folder} holds no JPEG")
    return found


def photographs(folder: Path | None, most: int) -> list[bytes]:
    """JPEGs of a folder, or stand-ins."""
    if folder is None:
        return [encoded(scene(500, 375, seed), "JPEG", quality=92) for seed in range(min(most, 40))]
    return [path.read_bytes() for path in jpegs(folder)[:most]]


def resized(data: bytes, scale: float) -> bytes:
    """A JPEG of quality 90 of the same picture at another size."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    size = (round(image.width * scale), round(image.height * scale))
    return encoded(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=90)


def sizes(data: bytes) -> tuple[int, int]:
    """Width and height."""
    size: tuple[int, int] = Image.open(io.BytesIO(data)).size
    return size


def speeds(name: str, images: list[bytes], rounds: int) -> list[Speed]:
    """Each way's figures, measured in turns."""
    ways: dict[str, Way] = {"decode alone": simplejpeg.decode_jpeg, **ways_to(Preprocessing())}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    pairs: dict[str, list[float]] = {way: [] for way in ways}

    def run(way: Way) -> tuple[float, float]:
        wall_s, busy_s = time.perf_counter(), time.thread_time()
        for data in images:
            way(data)
        return time.perf_counter() - wall_s, time.thread_time() - busy_s

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        for warmed in ways.values():
            one.submit(run, warmed).result()
        for _ in tqdm(range(rounds), desc=name, disable=None):
            for way in random.sample(list(ways), len(ways)):
                wall_s, busy_s = one.submit(run, ways[way]).result()
                spent[way].append(busy_s)
                if way in TIMED_IN_TWO_THREADS:
                    started = time.perf_counter()
                    list(two.map(run, [ways[way]] * 2))
                    pairs[way].append(2 * wall_s / (time.perf_counter() - started))

    def ratio(way: str, base: str) -> tuple[float, float, float]:
        found = np.array(spent[base]) / np.array(spent[way])
        return float(np.median(found)), float(np.percentile(found, 5)), float(np.percentile(found, 95))

    return [
        Speed(
            name,
            way,
            len(images) / statistics.median(spent[way]),
            *ratio(way, "decode alone"),
            *ratio(way, "reference"),
            statistics.median(pairs[way]) if pairs[way] else float("nan"),
        )
        for way in ways
    ]


def parities(name: str, images: list[bytes]) -> list[Parity]:
    """Each way beside the reference."""
    first, *others = ways_to(Preprocessing()).items()
    wanted = [first[1](data).astype(np.int16) for data in images]
    rows = []
    for way, run in others:
        levels = np.stack([np.abs(run(data) - pixels) for data, pixels in zip(images, wanted, strict=True)])
        over, high = float((levels > 2).mean()), float(np.percentile(levels, 99.9))
        rows.append(Parity(name, way, len(images), float(levels.mean()), over, high, int(levels.max())))
    return rows


def cifar(archive: Path, most: int) -> tuple[list[bytes], list[int]]:
    """Up to `most` test images, evenly spread over the archive, which has one class after the other, and their labels.

    They are the JPEG files as they are. Raises click.UsageError where there is none.
    """
    tests, labels = [], []
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if "/test/" not in f"/{member.name}" or not member.name.endswith(".jpg"):
                    continue
                file = opened.extractfile(member)
                assert file is not None
                tests.append(file.read())
                labels.append(CLASSES.index(member.name.split("/")[-2]))
    except (tarfile.TarError, OSError):
        raise click.UsageError(f"{archive} is no archive") from None
    if not tests:
        raise click.UsageError(f"{archive} holds no test/CLASS/NAME.jpg")
    chosen = np.linspace(0, len(tests) - 1, min(most, len(tests))).astype(int)
    return [tests[index] for index in chosen], [labels[index] for index in chosen]


def answers(networks: dict[str, Any], recipe: Preprocessing, pixels: list[Any]) -> dict[str, Any]:
    """Each network's best class for each image."""
    images = torch.from_numpy(np.stack(pixels))
    batch = 256 if recipe.crop <= 64 else 16
    return {name: reference(network, recipe, images, batch).argmax(1).numpy() for name, network in networks.items()}


def agreements(name: str, images: Iterable[bytes], side: int, labels: list[int] | None = None) -> list[Agreement]:
    """The demo networks on both ways' pixels."""
    checkpoints = {name: load_checkpoint(ROOT / "build" / "demo" / f"{name}.safetensors") for name in NETWORKS}
    networks = {stem: checkpoint.network for stem, checkpoint in checkpoints.items()}
    trained = default_recipe(next(iter(checkpoints.values())).spec.arch)
    recipe = trained.model_copy(update={"resize": side * 8 // 7 if side > 32 else side, "crop": side})
    ways = [follow(recipe, fast) for fast in (False, True)]
    pairs = [[way(data) for way in ways] for data in tqdm(images, desc=name, disable=None)]
    exact, quick = (answers(networks, recipe, [pair[way] for pair in pairs]) for way in (0, 1))
    rows = []
    for network in networks:
        accuracies: list[float | None] = [None, None]
        if labels is not None:
            accuracies = [100 * float((found[network] == np.array(labels)).mean()) for found in (exact, quick)]
        agree = 100 * float((exact[network] == quick[network]).mean())
        rows.append(Agreement(name, network, side, len(pairs), agree, *accuracies))
    return rows


def environment(script: str = "preprocessing") -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "command": " ".join([f"python -m tests.load.{script}", *sys.argv[1:]]),
        "python": platform.python_version(),
    }
    for package in ("pillow", "simplejpeg", "cykooz-resizer", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return found | {"processor": names[0] if names else platform.processor(), "cores": str(len(names))}


def table(rows: list[Any]) -> str:
    """The rows under their fields' names, in columns."""
    cells = [[name.replace("_", " ") for name in asdict(rows[0])]]
    for row in rows:
        values = asdict(row).values()
        cells.append(
            [f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value) for value in values]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


PARTS = ("speed", "parity", "agreement")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path, exists=True, file_okay=False), help="folder of JPEGs")
@click.option(
    "--cifar", "archive", type=click.Path(path_type=Path, exists=True), help="CIFAR-10 as an archive of JPEGs"
)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="default: all three")
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1, 1000), help="rounds of speed")
@click.option("--most", default=10_000, show_default=True, type=click.IntRange(1), help="most images of each set")
@click.option("--json", "json_file", type=Written(), help="where all figures go")
@click.option("--csv", "csv_file", type=Written(), help="where the speeds go")
def main(
    photos: Path | None,
    archive: Path | None,
    parts: tuple[str, ...],
    rounds: int,
    most: int,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Measures; see the module's first lines."""
    typical = photographs(photos, most)
    tests, labels = cifar(archive, most) if archive and "agreement" in parts else ([], [])
    large = [resized(data, math.sqrt(LARGE_PX / math.prod(sizes(data)))) for data in typical[::16]]
    sets = {
        f"{name}, {sum(map(len, images)) / len(images) / 1000:.0f} KB": images
        for name, images in (("photographs", typical), ("12 megapixels", large))
    }
    found: dict[str, list[Any]] = {part: [] for part in PARTS if part in parts}
    for name, images in sets.items():
        if "speed" in found:
            found["speed"] += speeds(name, images, rounds if images is typical else max(1, rounds // 2))
        if "parity" in found:
            found["parity"] += parities(name, images)
    if "agreement" in found:
        more = (resized(data, side / min(sizes(data))) for data in typical for side in SHORTER_SIDES)
        found["agreement"] += agreements("photographs", typical, 32) + agreements("photographs", typical, 224)
        found["agreement"] += agreements(f"photographs, shorter side {', '.join(map(str, SHORTER_SIDES))}", more, 32)
        if tests:
            found["agreement"] += agreements("CIFAR-10 test, 32 x 32", tests, 32, labels)
            enlarged = (resized(data, 10) for data in tests)
            found["agreement"] += agreements("CIFAR-10 test, 320 x 320", enlarged, 32, labels)
    facts = environment()
    print("\n\n".join(table(rows) for rows in found.values()))
    print("\n" + "\n".join(f"{key}: {value}" for key, value in facts.items()))
    if json_file:
        rows = {part: [asdict(row) for row in rows] for part, rows in found.items()}
        json_file.write_text(json.dumps({"environment": facts} | rows, indent=1))
    if csv_file and "speed" in found:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*asdict(found["speed"][0]), *facts])
            writer.writeheader()
            writer.writerows(asdict(row) | facts for row in found["speed"])


if __name__ == "__main__":
    main()
