"""Class activation maps: what they add up to, what is drawn, and in which form it is answered."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from eca_service.class_map import Heads, LinearHead, class_map
from eca_service.contract import Head
from eca_service.errors import ServiceError
from eca_service.geometry import Box
from eca_service.insight_routes import prefers_json
from eca_service.overlay import overlay_png
from PIL import Image, ImageOps

from tests.unit.test_contract import CONTRACT, write

# How many bytes the largest overlay makes a process of its own larger, at most.
MEASURE = """
import numpy as np
from eca_service.geometry import Box
from eca_service.overlay import overlay_png

def peak_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

values = np.random.default_rng(0).standard_normal((7, 7))
overlay_png(np.zeros((64, 64, 3), np.uint8), values, Box(0, 0, 1, 1), 0.6)
picture = np.full((4096, 4096, 3), 128, np.uint8)
before = peak_kb()
overlay_png(picture, values, Box(0, 0, 1, 1), 0.6)
print((peak_kb() - before) * 1024)
"""


def test_the_map_adds_up_to_the_logit() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((16, 3, 5)).astype(np.float32)
    head = LinearHead(*(generator.standard_normal(s).astype(np.float32) for s in ((4, 16), (4,))))
    found = class_map(features, head, 2)
    expected = features.mean((1, 2)) @ head.weight[2] + head.bias[2]
    assert found.values.shape == (3, 5)
    assert found.logit == pytest.approx(expected, abs=1e-5)
    assert found.values.sum() == pytest.approx(found.logit - found.bias)


def test_a_contract_without_a_head_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"^bad_parameter: m has no classifier in its contract") as without:
        Heads().of(write(tmp_path, head=None), CONTRACT.engine_sha256)
    assert without.value.retry_after_s is None, "it has none later either"
    with pytest.raises(ServiceError, match=r"^model_not_ready: .* was replaced while being served"):
        Heads().of(tmp_path, "other")
    with pytest.raises(ServiceError, match=r"^model_not_ready: m/2/contract.json is missing"):
        Heads().of(tmp_path / "m" / "2", "other")


def test_heads_are_kept_by_their_bytes(tmp_path: Path) -> None:
    """Eight of 21,841 classes took as much memory as a gateway has."""
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
        weight, bias = (base64.b64encode(bytes(4 * count)).decode() for count in (10 * 16, 10))
        write(folder, head=Head(classes=10, channels=16, weight=weight, bias=bias).model_dump())
    first, second, third = folders
    sha, heads, alone = CONTRACT.engine_sha256, Heads(room=2 * 10 * 16 * 4), Heads(room=1)
    kept = {folder: heads.of(folder, sha) for folder in folders}
    assert heads.of(third, sha) is kept[third]
    assert heads.of(second, sha) is kept[second]
    assert heads.of(first, sha) is not kept[first]
    assert heads.of(third, sha) is not kept[third], "who was asked for longest ago made room"
    last = alone.of(first, sha)
    assert alone.of(first, sha) is last, "the last one stays, however large"
    alone.of(second, sha)
    assert alone.of(first, sha) is not last


def test_a_head_is_read_once_whoever_asks_meanwhile(tmp_path: Path) -> None:
    """To read one takes several times its bytes."""
    weight, bias = (base64.b64encode(bytes(4 * count)).decode() for count in (1000 * 512, 1000))
    write(tmp_path, head=Head(classes=1000, channels=512, weight=weight, bias=bias).model_dump())
    heads, all_there = Heads(), threading.Barrier(8)

    def ask(_: int) -> LinearHead:
        all_there.wait(60)
        return heads.of(tmp_path, CONTRACT.engine_sha256)

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(ask, range(8))
    assert all(one is first for one in others)


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("image/png", False),
        ("application/json, image/png;q=0.5", True),
        ("application/json;q=0.2, image/*", False),
        ("application/json;Q=0.2, image/png;q=0.5", False),
        ("text/html, application/json;q=0.9, */*;q=0.8", True),
        ("application/json;q=many", False),
        ("application/json, text/plain, */*", True),
        ("application/*, */*", True),
        ("application/json, image/png", False),
        ("application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("image/png;q=0, */*", True),
        ("application/json;q=0.5, */*;q=0.6", False),
    ],
)
def test_the_form_is_negotiated(accept: str, json: bool) -> None:
    assert prefers_json(accept) is json


def test_nothing_is_claimed_outside_of_the_crop() -> None:
    picture = np.full((40, 60, 3), 128, np.uint8)
    values = np.array([[1.0, -1.0], [0.0, 0.0]])
    png = overlay_png(picture, values, Box(0.25, 0, 0.75, 1), 0.5, 1, "why")
    with Image.open(io.BytesIO(png)) as opened:
        drawn = np.asarray(opened).astype(int)
        assert opened.info["Description"] == "why"
    assert (drawn[:, :15] == 128).all()
    assert (drawn[:, 45:] == 128).all()
    assert (drawn[:, [15, 44]] == 255).all(), "its frame"
    assert (drawn[[0, 39], 15:45] == 255).all()
    warm, cool, flat = drawn[3, 18], drawn[3, 41], drawn[36, 30]
    assert warm[0] > 128 > warm[2], "what speaks for the class"
    assert cool[2] > 128 > cool[0], "what speaks against it"
    assert np.abs(flat - 128).max() < 20
    high = overlay_png(picture.swapaxes(0, 1), values.T, Box(0, 0.25, 1, 0.75), 0.5)
    with Image.open(io.BytesIO(high)) as opened:
        assert np.abs(np.asarray(opened).astype(int).swapaxes(0, 1) - drawn).max() <= 1
    for picture in (np.full((1, 1000, 3), 128, np.uint8), np.full((1000, 1, 3), 128, np.uint8)):
        crop = Box(0.4995, 0, 0.5005, 1) if len(picture) == 1 else Box(0, 0.4995, 1, 0.5005)
        with Image.open(io.BytesIO(overlay_png(picture, np.ones((2, 2)), crop, 0.5))) as opened:
            assert (np.asarray(opened) != 128).any(), "a crop is a pixel wide at least"
    everything = overlay_png(picture, np.zeros((2, 2)), Box(0, 0, 1, 1), 1.0)
    with Image.open(io.BytesIO(everything)) as opened:
        assert (np.asarray(opened) == 128).all(), "a map of nothing changes nothing, and needs no frame"


def test_every_row_of_a_high_crop_is_coloured() -> None:
    """They are in bands."""
    picture = np.full((400, 10, 3), 128, np.uint8)
    for crop, rows in ((Box(0, 0, 1, 1), slice(400)), (Box(0, 0.25, 1, 0.75), slice(101, 299))):
        with Image.open(io.BytesIO(overlay_png(picture, np.ones((2, 2)), crop, 0.5))) as opened:
            drawn = np.asarray(opened)
        assert (drawn[rows, 1:9] == drawn[200, 5]).all()
        assert drawn[200, 5, 0] > 128
        assert (drawn[: rows.start - 1 if rows.start else 0] == 128).all()
        assert (drawn[rows.stop + 1 :] == 128).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_overlay_takes_few_bytes_a_pixel() -> None:
    """A copy of the picture and the map, and the PNG's; each decoding thread may draw one."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 12 * 4096 * 4096


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_overlay_lies_as_the_file_does(orientation: int) -> None:
    """Its pixels are in the file's order, and turned as the file is they are upright."""
    upright = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    png = overlay_png(upright, np.zeros((2, 2)), Box(0, 0, 1, 1), 0.5, orientation)
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.size == ((30, 20) if orientation < 5 else (20, 30))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened)), upright)
