"""What a body holds: how far it is unpacked, and what of it are images."""

from __future__ import annotations

import encodings
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from eca_service.bodies import (
    MOST_COMMAS,
    MOST_MEMBERS,
    PIECE_BYTES,
    WIDE_BYTES,
    _base64,
    _expanded,
    from_base64,
    parsed,
    read_images,
)
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.journal import Entry
from eca_service.middleware import Exchange
from eca_service.peers import Peers
from eca_service.settings import Settings
from fastapi import Request


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize("body", [b"a", bytes(range(256)) * 200 + bytes(PIECE_BYTES)], ids=["a byte", "pieces"])
def test_a_body_may_be_unpacked_to_what_any_may_have(
    encoding: str, pack: Callable[[bytes], bytes], body: bytes
) -> None:
    packed = pack(body)
    assert _expanded(packed, encoding, len(body)) == body
    with pytest.raises(ServiceError, match=f"body_too_large: the body has more than {len(body) - 1} bytes"):
        _expanded(packed, encoding, len(body) - 1)
    with pytest.raises(ServiceError, match=f"bad_request: the {encoding} body is cut off"):
        _expanded(packed[:-1], encoding, len(body))
    with pytest.raises(ServiceError, match=f"bad_request: the body is not {encoding}"):
        _expanded(b"x" + packed, encoding, len(body))


def test_a_gzip_body_may_have_many_members() -> None:
    members = gzip.compress(b"a", mtime=0) * MOST_MEMBERS
    assert _expanded(members, "gzip", MOST_MEMBERS) == b"a" * MOST_MEMBERS
    with pytest.raises(ServiceError, match=f"bad_request: the gzip body has more than {MOST_MEMBERS} members"):
        _expanded(members + gzip.compress(b""), "gzip", MOST_MEMBERS)


def test_json_may_have_as_many_values_as_any_request_needs() -> None:
    assert parsed(b"[1" + b",1" * MOST_COMMAS + b"]") == [1] * (MOST_COMMAS + 1)
    with pytest.raises(ServiceError, match=f"bad_request: the JSON has more than {MOST_COMMAS} values"):
        parsed(b"[1" + b",1" * (MOST_COMMAS + 1) + b"]")
    for none in (b"", b"{", b'"\xff"', b"[" * 100_000):
        with pytest.raises(ServiceError, match="bad_request: the body is not valid JSON"):
            parsed(none)


@pytest.mark.parametrize("wide", ["\U0001f600".encode(), rb"\ud83d\ude00", "\u20ac".encode(), rb"\u20AC"])
def test_large_json_is_ascii(wide: bytes) -> None:
    """For one emoji in 32 MB each letter took four bytes, twice."""
    large = b"A" * WIDE_BYTES
    assert parsed(b'"%b"' % wide) == parsed(b'["%b"]' % wide)[0]
    assert len(parsed(rb'"\u002B\/%b"' % large)) == WIDE_BYTES + 2, "as .NET and PHP write base64"
    with pytest.raises(ServiceError, match=f"bad_request: JSON of more than {WIDE_BYTES} bytes must be ASCII"):
        parsed(b'["%b", "%b"]' % (wide, large))


def form(told: str, body: bytes) -> Request:
    """A form of this Content-Type."""
    headers = {b"content-type": told.encode()}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    exchange = Exchange(Entry("http"), headers, receive)
    return Request({"type": "http", "headers": list(headers.items()), "eca": exchange}, receive)


async def test_of_a_form_s_type_the_boundary_alone_counts(tmp_path: Path) -> None:
    """Python keeps the names of all charsets that it was asked for, and a caller may think of any number."""
    core, disposition = Core(Settings(repository=tmp_path), Peers()), b'form-data; name="a"; filename="a"'
    try:
        for said, boundary in (
            ("b", b"b"),
            ('"b c"', b"b c"),
            (r'"b\\c\"d"', rb'b\c"d'),
            (r'"b\"; charset=thought-of; c=\""', rb'b"; charset=thought-of; c="'),
            (r'"b\\\"; charset=thought-of; c=\\\""', rb"b\"; charset=thought-of; c=\""),
        ):
            body = b"--%b\r\nContent-Disposition: %b\r\n\r\nimage\r\n--%b--\r\n" % (boundary, disposition, boundary)
            request = form(f"multipart/form-data; charset=thought-of; boundary={said}", body)
            assert await read_images(request, core) == [b"image"]
        assert "thought-of" not in encodings._cache
        for told in ("", "; boundary=", "; charset=boundary="):
            with pytest.raises(ServiceError, match="names no boundary"):
                await read_images(form("multipart/form-data" + told, b""), core)
        with pytest.raises(ServiceError, match="has more than 1000 bytes"):
            await read_images(form("multipart/form-data; boundary=b" + ";" * 1000, b""), core)
    finally:
        await core.close()


async def test_what_a_form_and_other_types_hold(tmp_path: Path) -> None:
    core, told = Core(Settings(repository=tmp_path), Peers()), "multipart/form-data; boundary=b"
    try:
        named = b'--b\r\nContent-Disposition: form-data; name="model"; filename="a"\r\n\r\nimage\r\n--b--\r\n'
        assert await read_images(form(told, named), core) == [b"image"], "the name of a file is no option"
        assert await read_images(form(told, b"--b--\r\n"), core) == []
        with pytest.raises(ServiceError, match=r"bad_request: .*Content-Disposition"):
            await read_images(form(told, b"--b\r\nX: y\r\n\r\nimage\r\n--b--\r\n"), core)
        assert await read_images(form("Application/JSON; charset=utf-8", b'{"images": [{"b64": "YQ=="}]}'), core) == [
            b"a"
        ]
        assert await read_images(form("image/jpeg", b"a"), core) == [b"a"]
        assert await read_images(form("image/jpeg", b""), core) == []
    finally:
        await core.close()


@pytest.mark.parametrize("inner", [True, False])
def test_a_name_in_json_may_be_long(inner: bool) -> None:
    """Each of its dashes took the time and memory of a match: one request had all others wait for ten seconds."""
    name = b"-" * (1 << 20)
    body = b'{"images": [{"b64": "YQ==", "%b": 1}]}' if inner else b'{"images": [{"b64": "YQ=="}], "%b": 1}'
    tracemalloc.start()
    try:
        assert _base64(body % name) == [b"a"]
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_images_in_json() -> None:
    assert _base64(b'{"images": []}') == []
    first, second = _base64(b'{"images": [{"b64": "YQ=="}, {"b64": "YQ"}]}')
    assert first == b"a"
    assert isinstance(second, ServiceError)
    for body in (b"[]", b"{}", b'{"images": {"b64": "YQ=="}}'):
        with pytest.raises(ServiceError, match="bad_request: the JSON body must be "):
            _base64(body)
    for entry in (b"1", b"{}", b'"YQ=="', b'{"b64": 1}'):
        with pytest.raises(ServiceError, match='bad_request: each entry of "images" must be'):
            _base64(b'{"images": [{"b64": "YQ=="}, %b]}' % entry)


@pytest.mark.parametrize(
    "body",
    [b'{"images": [], "top_k": 3}', b'{"Model": "m", "images": []}', b'{"images": [{"b64": "YQ==", "class": 1}]}'],
)
def test_options_in_json_are_not_passed_over(body: bytes) -> None:
    with pytest.raises(ServiceError, match=r"bad_request: in JSON '\w+' is not read; give options of /v1 in the query"):
        _base64(body)
    assert _base64(b'{"images": [{"b64": "YQ==", "id": "mine"}], "comment": 1}') == [b"a"]


@pytest.mark.parametrize("text", ["YQ", "YQ==\n", "Y Q==", "\u00e9", "data:;base64,YQ==", "_-=="])
def test_what_is_no_base64(text: str) -> None:
    found = from_base64(text)
    assert isinstance(found, ServiceError)
    assert found.code == "bad_request"
