"""Calls over our own HTTP/2 connections: against gRPC's server, and against one that does what gRPC's seldom do."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
from eca_service import frames, http2
from eca_service.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from eca_service.hpack import fields_of
from eca_service.reconnecting import Reconnecting

from tests.unit.made_http2 import LIMIT, OK, PATH, connected, echo, framed, usable


@pytest.fixture
async def line() -> AsyncIterator[Reconnecting]:
    made = Reconnecting(PATH)
    yield made
    await made.close(0)


async def test_messages_of_any_size_side_by_side(line: Reconnecting) -> None:
    """More at once than gRPC's windows take, in both directions."""
    chance = random.Random(0)
    async with echo() as address:
        line.to(address)
        connection = await usable(line)
        sizes = [0, 1, 5, 16383, 16384, LIMIT - 5, LIMIT, 4 << 20, (4 << 20) + 1, 9 << 20]
        for _ in range(3):
            messages = [chance.randbytes(size) for size in chance.sample(sizes, len(sizes))]
            assert await asyncio.gather(*(connection.call(each, 20) for each in messages)) == messages
        assert not connection._calls
        assert not connection._unsent


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_what_a_status_means(line: Reconnecting, code: grpc.StatusCode) -> None:
    """gRPC's client finds out where trying again may help; all else is as it raises it."""
    async with echo() as address:
        line.to(address)
        connection = await usable(line)
        call = connection.call(b"status " + code.name.encode(), 20)
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}:
            assert await call is None
            return
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        assert (failure.value.code(), failure.value.details()) == (code, "why: 100 % of \u00fc")


async def test_a_call_that_takes_too_long() -> None:
    """It ends, and the server is told, whatever that does by itself."""
    async with connected() as (peer, connection):
        call = connection.call(b"x", 0.05)
        stream, _ = await peer.request()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await asyncio.wait_for(call, 0.9)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await peer.next(RST_STREAM) == (0, stream, struct.pack(">I", 8))


async def test_a_caller_that_leaves_at_its_deadline() -> None:
    """Both are known before the loop comes to say so to the server."""
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        stream, _ = await peer.request()
        call.cancel()
        connection._too_late(stream)
        assert await peer.next(RST_STREAM) == (0, stream, struct.pack(">I", 8))
        assert call.cancelled()


async def test_the_server_is_told_all() -> None:
    async with connected() as (peer, connection):
        long = "7" * 300
        call = connection.call(b"hello", 12.3456, (("Traceparent", "00-x"), ("long", long)))
        flags, stream, block = await peer.next(HEADERS)
        assert (flags, stream, block[:2]) == (END_HEADERS, 1, b"\x83\x86")
        assert fields_of(block) == {
            b":path": PATH.encode(),
            b":authority": b"somebody",
            b"te": b"trailers",
            b"content-type": b"application/grpc",
            b"grpc-timeout": b"12346m",
            b"traceparent": b"00-x",
            b"long": long.encode(),
        }
        assert await peer.next(DATA) == (0, 1, framed(b"hello")[:5])
        assert await peer.next(DATA) == (END_STREAM, 1, b"hello")
        peer.answer(1, b"hi")
        assert await call == b"hi"
        connection.call(b"", 1e6).cancel()
        assert fields_of((await peer.next(HEADERS))[2])[b"grpc-timeout"] == b"99999999m", "of eight digits at most"


async def test_answers_come_in_any_order_and_pieces() -> None:
    async with connected() as (peer, connection):
        calls = [connection.call(bytes([index]), 20) for index in range(3)]
        streams = [(await peer.request())[0] for _ in calls]
        written: list[bytes] = []
        real, peer.transport = peer.transport, type("Log", (), {"write": lambda _, data: written.append(data)})()
        for stream in reversed(streams):
            peer.answer(stream, b"of %d" % stream)
        padded = bytes([3]) + framed(b"padded") + bytes(3)
        peer.transport = real
        for byte in b"".join(written):
            real.write(bytes([byte]))
            await asyncio.sleep(0)
        assert await asyncio.gather(*calls) == [b"of 1", b"of 3", b"of 5"]
        call = connection.call(b"", 20)
        stream, _ = await peer.request()
        peer.send(DATA, PADDED, stream | 1 << 31, padded)  # a bit that is nobody's
        peer.send(HEADERS, END_HEADERS | END_STREAM, stream, OK)
        assert await call == b"padded"


async def test_no_more_is_sent_than_there_is_room_for() -> None:
    async with connected() as (peer, connection):
        peer.send(SETTINGS, 0, 0, struct.pack(">HI", frames.INITIAL_WINDOW, 1000))
        connection._frame_bytes = 600
        while connection._stream_window != 1000:
            await asyncio.sleep(0.01)
        call = connection.call(bytes(2000), 20)
        await peer.next(HEADERS)
        sizes = [len((await peer.next(DATA))[2]) for _ in range(3)]
        assert sizes == [5, 600, 395], "of a stream"
        peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">I", 700 | 1 << 31))  # a bit that is nobody's
        assert [len((await peer.next(DATA))[2]) for _ in range(2)] == [600, 100]
        peer.send(SETTINGS, 0, 0, struct.pack(">HI", frames.INITIAL_WINDOW, 1300))
        assert len((await peer.next(DATA))[2]) == 300, "a window that grows does so for streams that are there"
        peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">I", 700))
        flags, _, rest = await peer.next(DATA)
        assert (flags, len(rest)) == (END_STREAM, 5)
        peer.answer(1, b"done")
        assert await call == b"done"
        connection._window = 10
        second, third = connection.call(bytes(100), 20), connection.call(bytes(1), 20)
        await peer.next(HEADERS)
        assert [len((await peer.next(DATA))[2]) for _ in range(2)] == [5, 5], "of the connection"
        await peer.next(HEADERS)
        peer.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", LIMIT))
        assert [(stream, len(data)) for _, stream, data in [await peer.next(DATA) for _ in range(3)]] == [
            (3, 95),
            (5, 5),
            (5, 1),
        ]
        second.cancel()
        third.cancel()


async def test_whoever_leaves_is_told_of() -> None:
    """And what is not sent yet of their message is not sent."""
    async with connected() as (peer, connection):
        connection._window = 105
        call, other = connection.call(bytes(1000), 20), connection.call(b"other", 20)
        await peer.next(HEADERS)
        await peer.next(DATA)
        await peer.next(DATA)
        await peer.next(HEADERS)
        call.cancel()
        assert await peer.next(RST_STREAM) == (0, 1, struct.pack(">I", 8))
        peer.answer(1, b"too late")
        peer.send(WINDOW_UPDATE, 0, 1, struct.pack(">I", LIMIT))  # of its stream alone
        peer.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", 7))
        assert await peer.next(DATA) == (0, 3, framed(b"other")[:5])
        assert await peer.next(DATA) == (0, 3, b"ot")
        peer.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", LIMIT))
        assert await peer.next(DATA) == (END_STREAM, 3, b"her")
        peer.answer(3, b"mine")
        assert await other == b"mine"


async def test_a_stream_that_the_server_does_not_take_is_left() -> None:
    """What waited behind it is sent, though the server says no more of its windows."""
    async with connected() as (peer, connection):
        peer.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", LIMIT))
        while connection._window != 2 * LIMIT:
            await asyncio.sleep(0.01)
        call, other = connection.call(bytes(LIMIT), 20), connection.call(b"other", 20)
        call.cancel()
        while (frame := await asyncio.wait_for(peer.frames.get(), 10))[2] != 3 or frame[0] != DATA:
            assert frame[2] == 1 or frame[0] == HEADERS
        assert frame == (DATA, 0, 3, framed(b"other")[:5])
        assert await peer.next(DATA) == (END_STREAM, 3, b"other")
        other.cancel()


async def test_a_reason_that_is_no_text() -> None:
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        peer.answer((await peer.request())[0], b"", b"@\x0bgrpc-status\x0213@\x0cgrpc-message\x02\xffx")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        assert failure.value.details() == "\ufffdx"


async def test_a_failure_that_nobody_waits_for_any_more() -> None:
    """As where a caller hangs up and the server may not be told: it is no line in the log."""
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with connected() as (peer, connection):
        connection.call(b"x", 0.3)
        peer.answer((await peer.request())[0], b"", b"@\x0bgrpc-status\x0213")
        while connection._calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)  # past its deadline
        gc.collect()
        assert not failures


STRANGE = {
    "no status": b"",
    "Huffman's code": b"@\x8b" + bytes(139) + b"\x010" + OK,
    "cut off": OK[:-2],
    "cut off in its value": OK[:-2] + b"\x020",
    "no number": b"@\x0bgrpc-status\x02ok",
    "of the table": b"\xbe" + OK,
    "of no place": b"\x80" + OK,
    "no code": b"@\x0bgrpc-status\x0299",
    "a length without an end": b"\0\x7f\xff\xff",
}


@pytest.mark.parametrize("status", STRANGE.values(), ids=STRANGE)
async def test_grpc_is_to_find_out_what_is_not_understood(status: bytes) -> None:
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        peer.answer((await peer.request())[0], b"answer", status)
        assert await call is None
        assert connection.unknown == 1


@pytest.mark.parametrize("flags", [END_STREAM, END_STREAM | END_HEADERS | PADDED])
async def test_a_status_that_is_not_all_of_its_frame(flags: int) -> None:
    """It goes on in the next one, or is padded."""
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        stream, _ = await peer.request()
        peer.send(DATA, 0, stream, framed(b"answer"))
        peer.send(HEADERS, flags, stream, b"\x20" + OK + bytes(32))
        assert await call is None


@pytest.mark.parametrize("message", [b"\1\0\0\0\1x", b"\0\0\0\0\2x", b"\0\0\0", b""])
async def test_a_message_that_is_compressed_or_none(message: bytes) -> None:
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        stream, _ = await peer.request()
        peer.send(DATA, 0, stream, message)
        peer.send(HEADERS, END_HEADERS | END_STREAM, stream, OK)
        assert await call is None
        assert connection.usable, "it is that call's fault alone"


async def test_streams_and_connections_that_end() -> None:
    async with connected() as (peer, connection):
        calls = [connection.call(b"x", 20) for _ in range(4)]
        streams = [(await peer.request())[0] for _ in calls]
        peer.send(RST_STREAM, 0, streams[0], bytes(4))
        assert await calls[0] is None
        peer.send(DATA, END_STREAM, streams[1], framed(b"without a status"))
        assert await calls[1] is None
        peer.send(GOAWAY, 0, 0, struct.pack(">II", streams[2] | 1 << 31, 0))
        assert await calls[3] is None, "it is told that nobody has looked at it"
        assert not connection.usable
        assert not calls[2].done()
        peer.answer(streams[2], b"still")
        assert await calls[2] == b"still"
        await asyncio.wait_for(peer.lost.wait(), 10)
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        await peer.request()
        peer.transport.abort()
        assert await call is None
        assert not connection.usable
    async with connected() as (peer, connection):
        call = connection.call(b"x", 20)
        peer.transport.write(FRAME.pack(255, 0, DATA, 0, 1))
        assert await call is None, "a frame of 16 MB, which we have said that we do not take"


async def test_a_server_that_breaks_the_protocol(caplog: pytest.LogCaptureFixture) -> None:
    """It is told so, its calls end as those of a connection that is lost, and one line says why."""
    async with connected() as (peer, connection):
        calls = [connection.call(bytes(LIMIT), 20) for _ in range(3)]
        await peer.next(HEADERS)
        peer.send(SETTINGS, 0, 0, b"cut")
        peer.send(SETTINGS, 0, 0, b"too")
        assert await asyncio.gather(*calls) == [None] * 3
        assert not connection.usable
        while (frame := await asyncio.wait_for(peer.frames.get(), 10))[0] != GOAWAY:
            pass
        assert frame == (GOAWAY, 0, 0, struct.pack(">II", 0, frames.FRAME_SIZE_ERROR))
        await asyncio.wait_for(peer.lost.wait(), 10)
        (record,) = caplog.records
        assert record.getMessage().startswith("somebody breaks HTTP/2 (SETTINGS of 3 bytes): the connection is closed")
        assert record.exc_info is None


async def test_more_room_than_there_is(caplog: pytest.LogCaptureFixture) -> None:
    for stream in (0, 1):
        async with connected() as (peer, connection):
            call = connection.call(b"x", 20)
            await peer.request()
            peer.send(WINDOW_UPDATE, 0, stream, struct.pack(">I", frames.LARGEST))
            assert await call is None
    assert caplog.text.count("WINDOW_UPDATE to more than 2 GiB") == 2


async def test_a_connection_that_is_lost_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """What has not been sent of calls that end with it is not written to it, which the event loop would complain of."""
    async with connected() as (peer, connection):
        connection._window = 0
        calls = [connection.call(b"x", 20) for _ in range(10)]
        for _ in calls:
            await peer.next(HEADERS)
        connection._window = LIMIT
        peer.transport.abort()
        assert await asyncio.gather(*calls) == [None] * 10
        assert not caplog.messages


async def test_whether_we_are_there_is_answered() -> None:
    async with connected() as (peer, _):
        peer.send(PING, ACK, 0, b"you are!")  # which nobody has asked
        peer.send(PING, 0, 0, b"are you?")
        assert await peer.next(PING) == (ACK, 0, b"are you?")


@pytest.mark.skipif(sys.platform != "linux", reason="it has all of these")
async def test_whether_the_server_is_there_the_kernel_finds_out() -> None:
    """By default a gRPC server that works for eight seconds takes PINGs of a client that waits for an attack."""
    async with connected() as (_, connection):
        ours = connection._transport.get_extra_info("socket")
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT
        assert [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, 1, 3000]


async def test_no_more_calls_at_once_than_the_server_takes() -> None:
    async with connected() as (peer, connection):
        peer.send(SETTINGS, 0, 0, struct.pack(">HI", frames.MOST_STREAMS, 1))
        while connection._most_streams != 1:
            await asyncio.sleep(0.01)
        first = connection.call(b"x", 20)
        assert await connection.call(b"x", 20) is None
        peer.answer((await peer.request())[0], b"one")
        assert await first == b"one"
        assert connection.usable


async def test_numbers_of_streams_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "LAST_STREAM", 4)
    async with connected() as (peer, connection):
        calls = [connection.call(b"x", 20) for _ in range(2)]
        assert not connection.usable, "another connection begins anew"
        for _ in calls:
            peer.answer((await peer.request())[0], b"y")
        assert await asyncio.gather(*calls) == [b"y", b"y"]
        await asyncio.wait_for(peer.lost.wait(), 10)


async def test_windows_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LARGEST", LIMIT)
    async with connected() as (peer, connection):
        for size in (20_000, 20_000, 1):
            call = connection.call(b"x", 20)
            peer.answer((await peer.request())[0], bytes(size))
            assert await call == bytes(size)
        call = connection.call(b"x", 20)
        await peer.request()
        assert peer.given == 40_010, "with their lengths, once that is more than half"
        call.cancel()
