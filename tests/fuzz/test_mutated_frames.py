"""Answers over HTTP/2 that are mutated or made of nothing: their call ends, and nothing else happens."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter

import grpc
import pytest
from eca_service import frames as h2
from eca_service.frames import frame

from tests.fuzz.mutations import CHANGES
from tests.unit.made_http2 import FIRST, OK, connected, framed

ANSWER = b"".join(
    (
        frame(h2.HEADERS, h2.END_HEADERS, 1, FIRST),
        frame(h2.DATA, h2.PADDED, 1, b"\2" + framed(b"answer") + bytes(2)),
        frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)),
        frame(h2.PING, 0, 0, bytes(8)),
        frame(h2.SETTINGS, 0, 0, struct.pack(">HIHI", h2.INITIAL_WINDOW, 1 << 20, h2.MOST_BYTES, 1 << 15)),
        frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, OK),
    )
)
SIZES = (0, 1, 4, 5, 6, 8, 12, 40)


def strange(chance: random.Random) -> bytes:
    """Bytes, frames of any kind, or an answer that was changed."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        streams = (0, 1, 1, 1, 2, 3, h2.LARGEST)
        return b"".join(
            frame(
                chance.randrange(11),
                chance.randrange(256),
                chance.choice(streams),
                chance.randbytes(chance.choice(SIZES)),
            )
            for _ in range(chance.randint(1, 8))
        )
    data = bytearray(ANSWER)
    for _ in range(chance.randint(1, 2)):
        if data:
            chance.choice(CHANGES)(data, chance)
    return bytes(data)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.fuzz)])
async def test_mutated_frames(count: int, caplog: pytest.LogCaptureFixture) -> None:
    chance, ends = random.Random(count), Counter[str]()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    for _ in range(count):
        caplog.clear()
        async with connected() as (peer, connection):
            call = connection.call(bytes(chance.choice((0, 10, 100_000))), 20)
            await peer.next(h2.HEADERS)
            peer.transport.write(strange(chance))
            await asyncio.sleep(0.002)
            peer.transport.close()
            try:
                answer = await asyncio.wait_for(call, 10)
                ends["none" if answer is None else "answered"] += 1
            except grpc.aio.AioRpcError:
                ends["refused"] += 1
            assert not connection._calls
            if broken := connection.broken_at > 0:
                ends["broken"] += 1
            assert [record.exc_info for record in caplog.records] == [None] * broken, "one line, and no trace"
    assert not failures
    assert count / 2 < ends["broken"] < ends["none"]
    assert ends["answered"], "a change may be none that counts"
