"""Which encoding an answer gets."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest
from eca_service.middleware import Message, Receive, Send
from eca_service.negotiation import AWAY_BYTES, SMALLEST_BYTES, Negotiated, chosen


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("GZIP;q=0.8, deflate;q=0.5", "gzip"),
        ("gzip; q = 0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=, deflate;q=0.8", "gzip"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*;q=0", None),
        ("*", "gzip"),
        ("gzip;q=much", None),
        ("gzip;q=0.5;level=9, deflate;q=0.2", "gzip"),
    ],
)
def test_chosen(accepted: str, encoding: str | None) -> None:
    assert chosen(accepted) == encoding


async def got(pieces: Sequence[bytes], told: dict[bytes, bytes], accepted: Sequence[str] = ("gzip",)) -> httpx.Response:
    """What a caller gets of an answer in these pieces; its content is unpacked."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(sum(map(len, pieces))).encode()), *told.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces)})

    asked = [("accept-encoding", one) for one in accepted]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Negotiated(app)), base_url="http://x") as client:
        client.headers.pop("accept-encoding")
        return await client.get("/", headers=asked)


@pytest.mark.parametrize(
    ("accepted", "encoding"), [(["gzip"], "gzip"), (["gzip;q=0.1", "deflate"], "deflate"), (["br"], None), ([], None)]
)
@pytest.mark.parametrize("size", [SMALLEST_BYTES, AWAY_BYTES + 1])
async def test_a_large_answer_is_packed(size: int, accepted: list[str], encoding: str | None) -> None:
    answer = await got([b"a" * size], {b"content-type": b"application/json"}, accepted)
    assert answer.content == b"a" * size
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers.get("vary") == ("accept-encoding" if encoding else None), "for caches"
    assert answer.headers.get_list("content-length") == [str(answer.num_bytes_downloaded)]
    assert (answer.num_bytes_downloaded < size) == bool(encoding)


@pytest.mark.parametrize(
    ("pieces", "told", "packed"),
    [
        ([b"a" * (SMALLEST_BYTES - 1)], {}, False),
        ([b"a" * SMALLEST_BYTES, b"a"], {}, False),
        ([b"a" * SMALLEST_BYTES], {b"content-type": b"image/png"}, False),
        ([b"a" * SMALLEST_BYTES], {b"content-type": b"image/svg+xml"}, True),
        ([b"a" * SMALLEST_BYTES], {b"content-encoding": b"identity"}, False),
    ],
    ids=["small", "a stream", "an image", "a drawing", "packed before"],
)
async def test_what_gains_by_it_is_packed(pieces: list[bytes], told: dict[bytes, bytes], packed: bool) -> None:
    answer = await got(pieces, told)
    assert answer.content == b"".join(pieces)
    assert ("gzip" in answer.headers.get("content-encoding", "")) == packed
