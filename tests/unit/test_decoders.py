"""Large images share the memory of one, so that a burst of them fits into a container, and nobody waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from eca_service.budget import Budget
from eca_service.contract import Preprocessing
from eca_service.decoders import ROOM_BYTES, Decoders
from eca_service.errors import ServiceError
from eca_service.imaging import Large, decode
from eca_service.journal import Entry
from eca_service.settings import Settings
from PIL import Image

from tests.unit.image_files import encoded, noise, webp_claiming

RECIPE = Preprocessing()
BURST = """
import asyncio, sys
from types import SimpleNamespace
from eca_service.contract import Preprocessing
from eca_service.decoders import Decoders
from eca_service.journal import Entry
from eca_service.settings import Settings

def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024

contract = SimpleNamespace(name="m", preprocessing=Preprocessing())

async def main():
    decoders = Decoders(Settings(decode_threads=4, max_pixels=20_000_000))
    large, small = (bytes.fromhex(line) for line in sys.stdin)
    before, ended = peak_mib(), []

    async def one(image, name):
        await decoders.decode(image, contract, Entry("http"))
        ended.append(name)

    await one(large, "alone")
    alone = peak_mib() - before
    rest = [asyncio.create_task(one(large, "large")) for _ in range(4)]
    await asyncio.gather(*rest, *(one(small, "small") for _ in range(8)))
    print(alone, peak_mib() - before, *ended[1:])
    decoders.close()

asyncio.run(main())
"""


def picture(kind: str, width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.new(mode, (width, height)), kind, **options)


@pytest.mark.parametrize(
    ("data", "large"),
    [
        (picture("JPEG", 4000, 3000), False),  # a phone's, scaled to a quarter while it is decoded
        (picture("JPEG", 12_000, 8000, "L", comment=b"\xff\xda"), False),  # to an eighth, and the mark is no scan
        (picture("JPEG", 8000, 6000, progressive=True), True),
        (picture("JPEG", 16000, 1000), True),  # too low to be scaled
        (picture("PNG", 3840, 2160), False),
        (picture("PNG", 4000, 3000), True),
        (picture("WEBP", 2500, 2000, quality=1, method=0), False),
        (picture("WEBP", 4000, 3000, quality=1, method=0), True),
        (webp_claiming(9000, 9000), True),  # it is not even opened, which takes that memory
        (picture("TIFF", 4000, 3000, compression="tiff_lzw"), True),
    ],
)
def test_what_may_take_much_memory_is_large(data: bytes, large: bool) -> None:
    if large:
        with pytest.raises(Large):
            decode(data, RECIPE, 10**8, True, room=ROOM_BYTES)
    else:
        decode(data, RECIPE, 10**8, True, room=ROOM_BYTES)


def test_a_jpeg_is_large_where_it_is_not_scaled() -> None:
    data = picture("JPEG", 4000, 3000)
    with pytest.raises(Large):
        decode(data, RECIPE, 10**8, False, room=ROOM_BYTES)


def test_a_jpeg_is_large_where_its_preview_is() -> None:
    """For an explanation it is decoded once more, as large as asked for: 550 MiB of 49 million pixels."""
    data = picture("JPEG", 7000, 7000)
    assert decode(data, RECIPE, 10**8, True, 1024, ROOM_BYTES).preview is not None, "from a quarter"
    with pytest.raises(Large):
        decode(data, RECIPE, 10**8, True, 4096, ROOM_BYTES)


@pytest.mark.parametrize("way", ["fast", "reference"])
async def test_images_are_decoded_as_the_setting_says(way: Literal["fast", "reference"]) -> None:
    """Both where an image has company and where it is large, with the limit and the preview asked for."""
    contract: Any = SimpleNamespace(name="m", preprocessing=RECIPE)
    decoders = Decoders(Settings(decode_threads=1, preprocessing=way, max_pixels=4000 * 3000))
    try:
        for data in (encoded(noise(1300, 1300), "JPEG"), encoded(noise(400, 300).resize((4000, 3000), 0), "BMP")):
            found, _ = await decoders.decode(data, contract, Entry("http"), 64)
            wanted, other = (decode(data, RECIPE, 10**8, fast, 64) for fast in (way == "fast", way != "fast"))
            assert found.preview is not None
            assert wanted.preview is not None
            assert np.array_equal(found.preview, wanted.preview)
            assert np.array_equal(found.pixels, wanted.pixels)
            assert not np.array_equal(found.pixels, other.pixels)
        with pytest.raises(ServiceError, match="image_too_many_pixels"):
            await decoders.decode(picture("BMP", 4001, 3000), contract, Entry("http"))
    finally:
        decoders.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_burst_of_large_images_takes_the_memory_of_one() -> None:
    large, small = picture("WEBP", 5000, 4000, quality=1, method=0), picture("JPEG", 64, 64)
    given = f"{large.hex()}\n{small.hex()}"
    done = subprocess.run([sys.executable, "-c", BURST], input=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    alone, together, *ended = done.stdout.split()
    assert int(alone) > 150, "or this image is no trial"
    assert int(together) < 1.5 * int(alone), "four threads, four images"
    assert ended.index("large") > ended.index("small"), "small ones do not wait for them"
    assert ended[-1] == "large"


async def test_what_fits_runs_at_once_and_who_asked_first_goes_first() -> None:
    budget, begun, end = Budget(100), list[str](), {name: threading.Event() for name in "abcd"}

    def work(name: str) -> str:
        begun.append(name)
        assert end[name].wait(30)
        return name

    async def until(names: str) -> None:
        while len(begun) < len(names):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert "".join(sorted(begun)) == names

    with ThreadPoolExecutor(4) as pool:
        tasks = []
        for name, share in (("a", 40), ("b", 40), ("c", 1000), ("d", 10)):
            tasks.append(asyncio.create_task(budget.run(pool, share, work, name)))
            await asyncio.sleep(0)
        await until("ab")
        tasks[0].cancel()
        end["b"].set()
        await until("ab")  # a's thread goes on, whoever asked for it
        end["a"].set()
        await until("abc")  # more than there is: all of it, and d is behind
        end["c"].set()
        await until("abcd")
        end["d"].set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["b", "c", "d"]


async def test_whoever_leaves_the_queue_lets_the_others_through() -> None:
    budget, end = Budget(1), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        first, second, third = (asyncio.create_task(budget.run(pool, 1, end.wait, 30)) for _ in range(3))
        await asyncio.sleep(0.01)
        second.cancel()
        end.set()
        assert all(await asyncio.wait_for(asyncio.gather(first, third), 10))


async def test_what_cannot_be_begun_gives_its_share_back() -> None:
    """As where the system has no thread left."""
    budget, closed = Budget(1), ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule"):
        await budget.run(closed, 1, int)
    with ThreadPoolExecutor(1) as pool:
        assert await asyncio.wait_for(budget.run(pool, 1, int), 10) == 0
