"""The images that engines are verified on: the user's, and synthetic ones of any size."""

from __future__ import annotations

import glob
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from eca_build.compile import compile_checkpoint
from eca_build.errors import BuildError
from eca_build.images import LEAST, classes, enough, load, require_typical, synthetic
from eca_build.inputs import Options, gather
from eca_build.targets import Wish
from eca_service.cli.images import below, expand
from eca_service.contract import Preprocessing
from PIL import Image

DEMO = Path(__file__).parents[2] / "build" / "demo"
WEIGHTS, LABELS = DEMO / "resnet14-eca.safetensors", DEMO / "labels.txt"


def test_large_images_are_fewer() -> None:
    assert [enough(size) for size in (1, 32, 224, 512, 1024, 2048, 4096)] == [64, 64, 64, 64, 16, 4, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_synthetic_images_of_any_size(size: int) -> None:
    images = synthetic(size, 5)
    assert images.shape == (5, size, size, 3)
    assert len(np.unique(images, axis=0)) == 5
    assert np.array_equal(images[:2], synthetic(size, 2)), "they do not depend on how many there are"


def test_synthetic_images_are_like_photographs() -> None:
    """Neighbours are alike, and so are the colours: of white noise a step is 1.1 deviations, and colours share none."""
    images = synthetic(64, 8).astype(int)
    assert np.abs(np.diff(images, axis=1)).mean() < 0.7 * images.std()
    assert np.corrcoef(images.reshape(-1, 3).T).min() > 0.3
    assert np.abs(images - 127.5).max((1, 2, 3)).tolist() == [127.5] * 8, "each uses all levels"


def test_what_cannot_be_an_image_is_a_sentence(tmp_path: Path) -> None:
    recipe = Preprocessing()
    for name, sentence in (
        ("long", r"long\.png is too elongated: .* it would be 256 x 15360000; remove"),
        ("pipe", "a pipe"),
    ):
        (tmp_path / name).mkdir()
        if name == "pipe":
            os.mkfifo(tmp_path / name / "a.jpg")
        else:
            Image.new("RGB", (1, 60_000)).save(tmp_path / name / "long.png")
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / name, recipe)
    with pytest.raises(BuildError, match="cannot be read: File name too long"):
        load(tmp_path / ("x" * 300), recipe)


def test_images_of_every_kind_are_found_and_those_taken_are_spread(tmp_path: Path) -> None:
    recipe = Preprocessing(resize=8, crop=8)
    for index, name in enumerate(("a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp")):
        Image.new("RGB", (8, 8), (0, 0, 50 * index)).save(tmp_path / name)
    (tmp_path / "f.txt").write_text("no image")
    assert len(load(tmp_path, recipe)) == 5
    assert load(tmp_path, recipe, most=3)[:, 0, 0, 2].tolist() == [0, 100, 200]


def test_of_many_images_those_taken_have_their_own_class(tmp_path: Path) -> None:
    for index in range(130):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index:03}.png")
    labels = [f"{index:03}" for index in range(130)]
    taken = load(tmp_path, Preprocessing(resize=8, crop=8))[:, 0, 0, 0]
    assert (len(taken), taken[0], taken[-1]) == (128, 0, 129)
    assert classes(tmp_path, labels).tolist() == taken.tolist()


def test_more_may_be_verified_on_than_ranges_are_taken_from(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(300):
        Image.new("RGB", (40, 40), (number % 256, number // 256, 0)).save(folder / f"{number:03}.png")
    options = Options(WEIGHTS, tmp_path / "repository", images=folder, labels=LABELS, wish=Wish(precision="int8"))
    for most, used, ranges in ((128, 128, 128), (200, 200, 128), (1000, 300, 128), (50, 50, 50)):
        inputs = gather(replace(options, most_images=most))
        assert inputs.calibration is not None
        assert (len(inputs.sample), len(inputs.calibration)) == (used, ranges)
        assert inputs.classes is not None
        assert len(inputs.classes) == used


def test_what_ranges_are_taken_from_is_verified_on_where_nothing_else_is_given() -> None:
    """On noise the integers of a network may agree on less than 95 %, and be right on every photograph."""
    wish = Wish(precision="int8")
    options = Options(WEIGHTS, Path("models"), labels=LABELS, wish=wish, calibration=DEMO / "images", most_images=20)
    inputs = gather(options)
    assert inputs.calibration is not None
    assert inputs.classes is not None
    assert (len(inputs.sample), len(inputs.classes), len(inputs.calibration)) == (20, 20, 60)
    assert (inputs.source, inputs.calibrated_on) == ("images/", "images/")


@pytest.mark.parametrize(
    ("images", "calibration", "named"),
    [("none", None, "images"), (None, "none", "calibration"), ("images", "none", "calibration")],
)
def test_a_folder_that_is_not_there_is_told_with_its_option(
    images: str | None, calibration: str | None, named: str
) -> None:
    shown, ranges = (DEMO / name if name else None for name in (images, calibration))
    options = Options(WEIGHTS, Path("models"), labels=LABELS, images=shown, calibration=ranges, most_images=1)
    with pytest.raises(BuildError, match=f"{DEMO / 'none'} cannot be read: .* give another to --{named}$"):
        gather(options)


def test_int8_is_given_images_that_differ() -> None:
    """With the ranges of one image, or of many of one colour, an engine passes on these and fails on others."""
    photographs = load(DEMO / "images", Preprocessing(resize=32, crop=32), most=LEAST)
    plain = np.ones_like(photographs) * np.arange(len(photographs), dtype=np.uint8)[:, None, None, None]
    require_typical(photographs, "verify it")
    for given, count in ((photographs[:1], 1), (photographs[[0] * 20], 1), (plain, 0), (photographs[1:], 7)):
        with pytest.raises(BuildError, match=f"8 images to verify it .* {len(given)} given {count} are .* to --images"):
            require_typical(given, "verify it")


@pytest.mark.parametrize("few", ["images", "calibration"])
def test_int8_of_too_few_images_is_refused(tmp_path: Path, few: str) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(DEMO / "images" / "dog-1.jpg", tmp_path / "one")
    shown, calibration = (tmp_path / "one" if name == few else DEMO / "images" for name in ("images", "calibration"))
    wish = Wish(precision="int8")
    options = Options(WEIGHTS, tmp_path / "m", labels=LABELS, images=shown, calibration=calibration, wish=wish)
    purpose = "set its ranges" if few == "calibration" else "verify it"
    with pytest.raises(BuildError, match=f"int8 needs at least 8 images to {purpose} .* of the 1 given 1 are such"):
        compile_checkpoint(options, lambda _: None)


def test_a_label_of_two_classes_says_neither(tmp_path: Path) -> None:
    for name in ("cat-1.jpg", "crane-1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert list(classes(tmp_path, ("crane", "cat", "crane"))) == [1, -1]


def test_a_large_image_is_taken_in_silence_and_one_twice_as_large_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Pillow's limit, which stands in the build's own process: here the gateway's code has taken it away."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    assert load(tmp_path, Preprocessing(resize=8, crop=8)).shape == (1, 8, 8, 3)
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    with pytest.raises(BuildError, match=r"a\.png cannot be read as an image \(Image size \(2500 pixels\) exceeds"):
        load(tmp_path, Preprocessing(resize=8, crop=8))


@pytest.mark.parametrize(("kept", "why"), [(1500, "image file is truncated"), (40, "cannot identify image file")])
def test_an_image_that_is_cut_off_is_a_sentence(tmp_path: Path, kept: int, why: str) -> None:
    Image.fromarray(synthetic(32, 1)[0]).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:kept])
    with pytest.raises(BuildError, match=rf"a\.png cannot be read as an image \({why}"):
        load(tmp_path, Preprocessing(resize=32, crop=32))


def test_a_chunk_without_a_name_is_a_sentence(tmp_path: Path) -> None:
    """Pillow's exception for it is a SyntaxError."""
    buffer = io.BytesIO()
    Image.fromarray(synthetic(300, 1)[0]).save(buffer, "PNG", compress_level=0)
    whole = buffer.getvalue()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    (tmp_path / "a.png").write_bytes(whole[:second] + b"ID\0T" + whole[second + 4 :])
    with pytest.raises(BuildError, match=r"a\.png cannot be read as an image \(broken PNG file"):
        load(tmp_path, Preprocessing(resize=32, crop=32))


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Data sets are often laid out as links."""
    recipe = Preprocessing(resize=8, crop=8)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name, stored in (("dog", "n1"), ("cat", "n2")):
        (tmp_path / "store" / stored).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "store" / stored / "1.png")
        (linked / name).symlink_to(tmp_path / "store" / stored)
    (tmp_path / "store" / "n1" / "back").symlink_to(linked)
    (tmp_path / "store" / "n1" / "self").symlink_to(".")
    (linked / "up").symlink_to(tmp_path)
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "beside.png")
    assert classes(linked, ("cat", "dog")).tolist() == [0, 1]
    assert load(linked, recipe).shape == (2, 8, 8, 3)
    assert below(linked) == [linked / "cat" / "1.png", linked / "dog" / "1.png"]
    assert below(linked / "dog") == [linked / "dog" / "1.png"]
    assert expand([linked / "**" / "*.png"]) == [linked / "cat" / "1.png", linked / "dog" / "1.png"]


def test_folders_that_are_linked_with_each_other_are_gone_through_once(tmp_path: Path) -> None:
    """A folder was gone through by every way that leads there, of which nine such folders have a million."""
    for one in range(9):
        (tmp_path / f"{one}").mkdir()
        Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / f"{one}" / f"{one}.png")
        for other in set(range(9)) - {one}:
            (tmp_path / f"{one}" / f"to{other}").symlink_to(f"../{other}")
    assert sorted(path.stem for path in below(tmp_path)) == [f"{one}" for one in range(9)]
    assert load(tmp_path, Preprocessing(resize=8, crop=8)).shape[0] == 9
    for pattern in ("**/*.png", "**", "**/[0-9]*/**/*.png"):
        assert {path.stem for path in expand([tmp_path / pattern])} == {f"{one}" for one in range(9)}


def test_patterns_match_as_glob_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", ".hidden/e.jpg", "x/.f.jpg", "[z]/g.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "**/*.jpg",
        "x/**/*.jpg",
        "**/y/*",
        "x/**",
        "**/x/**/*.jpg",
        "*/*.jpg",
        f"{tmp_path}/**/*.jpg",
        "x*/**",
    ):
        matched = {Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file()}
        assert set(expand([Path(pattern)])) == matched, pattern


def test_a_folder_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(
        BuildError, match=f"the folder {missing} cannot be read: No such file .*; give another to --images"
    ):
        load(missing, Preprocessing())
    with pytest.raises(BuildError, match=r"holds no image \(\.bmp, .*\); give another folder to --calibration"):
        load(tmp_path, Preprocessing(), option="--calibration")
    with pytest.raises(click.UsageError, match=f"{missing} cannot be read: No such file"):
        below(missing)


def test_a_file_that_cannot_be_looked_at_is_told_when_it_is_read(tmp_path: Path) -> None:
    """Here for its name; most often for its folder's permissions."""
    long = tmp_path / f"{'x' * 300}.jpg"
    linked = tmp_path / "linked.jpg"
    linked.symlink_to(long)
    assert expand([long, tmp_path]) == [long, linked]
    assert expand([tmp_path / "*.jpg"]) == [linked]
