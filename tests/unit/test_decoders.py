"""Large images are decoded one at a time, so that a burst of them fits into a container, and nobody waits for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from eca_service.contract import Preprocessing
from eca_service.decoders import ROOM_BYTES
from eca_service.imaging import Large, decode
from PIL import Image

from tests.unit.image_files import encoded

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
    decoders = Decoders(Settings(decode_threads=4))
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
        (picture("JPEG", 8000, 6000), False),
        (picture("JPEG", 8000, 6000, progressive=True), True),
        (picture("JPEG", 16000, 1000), True),  # too low to be scaled
        (picture("PNG", 3840, 2160), False),
        (picture("PNG", 4000, 3000), True),
        (picture("WEBP", 2500, 2000, quality=1, method=0), False),
        (picture("WEBP", 4000, 3000, quality=1, method=0), True),
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
    data = picture("JPEG", 8000, 6000)
    with pytest.raises(Large):
        decode(data, RECIPE, 10**8, False, room=ROOM_BYTES)


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
