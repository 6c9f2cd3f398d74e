"""The build verifies on the pixels that the gateway would send, and the gateway's fast way stays close to them."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eca_build.images import load
from eca_service import jpeg, resampling
from eca_service.contract import Preprocessing
from eca_service.imaging import decode
from numpy.typing import NDArray
from PIL import Image

from tests.load.photographs import PHOTOS
from tests.unit.image_files import encoded, scene, turned_by_exif

FILES = sorted(PHOTOS.glob("*.JPEG"))


@pytest.mark.parametrize("size", [(32, 32), (301, 200), (200, 333), (20, 90)])
def test_build_and_gateway_agree(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    recipe = Preprocessing(resize=40, crop=32)
    gateway = decode((tmp_path / "a.png").read_bytes(), recipe, 10**6).pixels
    assert np.array_equal(load(tmp_path, recipe)[0], gateway)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16"])
def test_build_and_gateway_agree_on_colours(tmp_path: Path, mode: str) -> None:
    """Else ranges are calibrated, and the accuracy verified, on other pixels than those that are served."""
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values[:, :, 0] * np.uint16(257))
    elif mode == "P":
        image = image.quantize(16)
    else:
        image = image.convert(mode)
    image.info["transparency"] = 3  # one gray, or one of a palette; of no meaning beside an alpha channel
    image.save(tmp_path / "a.png")
    recipe = Preprocessing(resize=40, crop=32)
    gateway = decode((tmp_path / "a.png").read_bytes(), recipe, 10**6).pixels
    assert np.array_equal(load(tmp_path, recipe)[0], gateway)


@pytest.fixture(params=["all", "without simd", "pillow alone"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the libraries that this platform has, and with those that others lack taken away."""
    if request.param != "all":
        monkeypatch.setattr(resampling, "simd", None)
    if request.param == "pillow alone":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    return str(request.param)


@functools.cache
def file_of(kind: str, width: int, height: int, orientation: int = 1) -> bytes:
    return turned_by_exif(scene(width, height), orientation, kind, **({"quality": 90} if kind == "JPEG" else {}))


@functools.cache
def reference(data: bytes, recipe: Preprocessing) -> NDArray[np.int64]:
    return decode(data, recipe, 10**8).pixels.astype(np.int64)


def apart(data: bytes, recipe: Preprocessing) -> NDArray[np.int64]:
    """Levels between the fast way and the reference."""
    pixels = decode(data, recipe, 10**8, fast=True).pixels
    assert pixels.shape == (recipe.crop, recipe.crop, 3)
    levels: NDArray[np.int64] = np.abs(pixels - reference(data, recipe))
    return levels


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (224, 224), (257, 256), (231, 700), (90, 70)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_parity(fast: str, kind: str, size: tuple[int, int]) -> None:
    levels = apart(file_of(kind, *size), Preprocessing())
    assert levels.max() <= 2
    assert levels.mean() <= 0.3
    levels = apart(file_of(kind, *size), Preprocessing(resize=300, crop=288, filter="bicubic"))
    assert (levels > 2).mean() <= 0.005, "bicubic overshoots, and clips earlier or later"
    assert levels.mean() <= 0.35


@pytest.mark.parametrize("orientation", range(1, 9))
def test_parity_of_a_turned_image(fast: str, orientation: int) -> None:
    levels = apart(file_of("JPEG", 301, 400, orientation), Preprocessing())
    assert levels.max() <= 2
    levels = apart(file_of("JPEG", 800, 601, orientation), Preprocessing(resize=128, crop=112))
    assert levels.mean() <= 1.5, "turned the other way it is tens of levels apart"


@pytest.mark.parametrize(("size", "resize"), [((1366, 1280), 256), ((1080, 1440), 128), ((1080, 1440), 96)])
def test_parity_of_a_large_jpeg(fast: str, size: tuple[int, int], resize: int) -> None:
    """Scaled to a half, a half and a quarter while decoded; photographs, less noisy, are nearer to the reference."""
    levels = apart(file_of("JPEG", *size), Preprocessing(resize=resize, crop=resize - 16))
    assert levels.mean() <= 1.5
    assert levels.max() <= 16


def test_right_size_is_exact(fast: str) -> None:
    for kind in ("JPEG", "PNG"):
        for size in ((32, 32), (47, 32), (32, 64)):
            assert apart(file_of(kind, *size), Preprocessing(resize=32, crop=32)).max() == 0


def test_any_size_has_its_place(fast: str) -> None:
    """The edges of the box never lie outside of the image, however they round."""
    random = np.random.default_rng(0)
    for _ in range(150):
        width, height = random.integers(1, 300, 2)
        recipe = Preprocessing(resize=int(random.integers(8, 60)), crop=int(random.integers(8, 60)))
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert apart(encoded(image, "BMP"), recipe).max() <= 2


ENLARGE = """
import sys
from eca_service.contract import Preprocessing
from eca_service.imaging import decode

decode(sys.stdin.buffer.read(), Preprocessing(resize=256, crop=224, filter="bicubic"), 10**7, True)
"""


def test_what_is_enlarged_ends_no_process() -> None:
    """The first pixel's centre lies on one of the image's, so that bicubic's taps to its left are zero."""
    data = file_of("PNG", 218, 125)
    assert subprocess.run([sys.executable, "-c", ENLARGE], input=data, check=False, timeout=60).returncode == 0
    assert apart(data, Preprocessing(resize=256, crop=224, filter="bicubic")).max() <= 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_previews_are_alike(fast: str, orientation: int) -> None:
    """Though a JPEG is decoded for it on its own, at a size near the one that is asked for."""
    for kind, size, longest_px in (("JPEG", (1365, 1024), 300), ("JPEG", (500, 375), 900), ("PNG", (500, 375), 300)):
        data = file_of(kind, *size, orientation)
        exact, quick = (decode(data, Preprocessing(), 10**8, way, longest_px).preview for way in (False, True))
        assert exact is not None
        assert quick is not None
        assert exact.shape == quick.shape
        assert max(exact.shape) == min(longest_px, max(size))
        assert np.abs(exact.astype(int) - quick).mean() < 3


def test_a_preview_is_as_large_as_asked_where_the_recipe_scaled_the_image(fast: str) -> None:
    data = encoded(Image.new("CMYK", (1600, 1000), (10, 200, 30, 0)), "JPEG")
    preview = decode(data, Preprocessing(resize=36, crop=32), 10**8, bool(fast), 1024).preview
    assert preview is not None
    assert preview.shape == (640, 1024, 3)


def test_a_header_that_two_readers_differ_over_is_left_to_pillow() -> None:
    pytest.importorskip("simplejpeg")
    data = file_of("JPEG", 24, 24)
    assert jpeg.decode_scaled(data, (17, 17), 8) is None, "though both would be three pixels wide"
    pixels = jpeg.decode_scaled(data, (24, 24), 8)
    assert pixels is not None
    assert pixels.shape == (3, 3, 3)


@pytest.mark.skipif(not FILES, reason="the photographs are no part of the project")
def test_parity_on_photographs(fast: str) -> None:
    levels = [apart(path.read_bytes(), Preprocessing()) for path in FILES]
    assert np.mean([one.mean() for one in levels]) <= 0.25
    assert max(one.max() for one in levels) <= 2, "none is large enough to be scaled"
    halved = [apart(path.read_bytes(), Preprocessing(resize=66, crop=56)) for path in FILES]
    assert np.mean([one.mean() for one in halved]) <= 0.7
    assert max(one.mean() for one in halved) <= 2


MEMORY_TAKEN = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from eca_service.contract import Preprocessing
from eca_service.gateway import _release_memory
from eca_service.imaging import decode

def pages_taken():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

data = sys.stdin.buffer.read()
_release_memory(1)
with ThreadPoolExecutor(1) as pool:
    for _ in range(20):
        pool.submit(decode, data, Preprocessing(), 10**7, True).result()
    before = pages_taken()
    for _ in range(50):
        pool.submit(decode, data, Preprocessing(), 10**7, True).result()
    print((pages_taken() - before) / 50)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of glibc is set up on Linux alone")
def test_memory_is_used_again() -> None:
    """An image's memory is not taken from the system anew for each: that costs as much time as to decode it."""
    command = [sys.executable, "-c", MEMORY_TAKEN]
    done = subprocess.run(command, input=file_of("JPEG", 500, 375), capture_output=True, check=True, timeout=60)
    assert float(done.stdout) < 20, "pages of an image of 140"
