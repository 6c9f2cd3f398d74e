"""From the body of an HTTP request to encoded images."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.query import require_no_option

Images = Sequence[bytes | ServiceError]
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
MOST_MEMBERS = 10_000  # of a gzip body; bgzip has one for each 64 KB, and an empty one takes 20 bytes
PIECE_BYTES = 16 << 10  # given to zlib at a time: of each member it copies what follows it
MOST_TYPE_BYTES = 1000  # to parse many parameters takes the square of their time
MOST_COMMAS = 10_000  # in JSON: one between any two values; a text of megabytes could be millions of them
WIDE_BYTES = 8 << 20  # of JSON: one character beyond Latin-1 makes two or four bytes of each of a text's


def header(request: Request, name: bytes) -> str:
    """A header's value; of one that comes twice the last. Empty where there is none."""
    value: bytes = request.scope["eca"].headers.get(name, b"")
    return value.decode("latin-1")


async def read_body(request: Request, core: Core) -> bytes:
    """The whole body, decompressed where its Content-Encoding says gzip or deflate.

    What it is decompressed to counts like a body of that size. Raises body_too_large, overloaded, or bad_request for
    another encoding or damaged data.
    """
    body = await request.body()
    encoding = header(request, b"content-encoding").strip().lower() or "identity"
    if encoding == "identity":
        return body
    if encoding not in WINDOWS:
        raise ServiceError("bad_request", f"Content-Encoding is {encoding!r}; gzip and deflate are supported")
    expanded = await core.decoders.aside(_expanded, body, encoding, core.settings.max_body_bytes)
    if permit := request.scope["eca"].permit:
        permit.cover(len(body) + len(expanded))
    return expanded


def _expanded(body: bytes, encoding: str, most: int) -> bytes:
    """Of gzip all members (RFC 1952, 2.2)."""
    expanded, members, expander = bytearray(), 1, zlib.decompressobj(WINDOWS[encoding])
    for at in range(0, len(body), PIECE_BYTES):
        rest = body[at : at + PIECE_BYTES]
        while rest:
            if expander.eof:
                expander, members = zlib.decompressobj(WINDOWS[encoding]), members + 1
            if members > MOST_MEMBERS:
                raise ServiceError("bad_request", f"the {encoding} body has more than {MOST_MEMBERS} members")
            try:
                expanded += expander.decompress(rest, most + 1 - len(expanded))
            except zlib.error as error:
                raise ServiceError("bad_request", f"the body is not {encoding}: {error}") from None
            if len(expanded) > most:
                raise ServiceError("body_too_large", f"the body has more than {most} bytes when it is decompressed")
            rest = expander.unused_data
    if not expander.eof:
        raise ServiceError("bad_request", f"the {encoding} body is cut off")
    return bytes(expanded)


def parsed(text: bytes) -> Any:
    """The value that the text is as JSON. Raises bad_request where it is none, or more than any request needs."""
    if text.count(b",") > MOST_COMMAS:
        raise ServiceError("bad_request", f"the JSON has more than {MOST_COMMAS} values")
    if len(text) > WIDE_BYTES and not (text.isascii() and text.count(rb"\u") == text.count(rb"\u00")):
        raise ServiceError("bad_request", f"JSON of more than {WIDE_BYTES} bytes must be ASCII, as base64 is")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServiceError("bad_request", "the body is not valid JSON") from None


async def read_images(request: Request, core: Core) -> Images:
    """The encoded images of a request, in their order; bad_request where the body is not what it says."""
    kind = header(request, b"content-type").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, core)
    body = await read_body(request, core)
    if kind == "application/json":
        return await core.decoders.aside(_base64, body)
    return [body] if body else []


class _Form(MultiPartParser):
    """Starlette's, which takes a part for a text whose name of a file is in RFC 5987's form alone, and a form that is
    cut off for a shorter one: the answers would be other images'.
    """

    ended = False
    spool_max_size = 0  # no file is written to disk; what the body may have bounds them all

    def on_headers_finished(self) -> None:
        """A part begins."""
        told = self._current_part.content_disposition or b""
        if b"filename*=" in told and b"filename=" not in told:
            self._current_part.content_disposition = told + b'; filename="image"'
        super().on_headers_finished()

    def on_end(self) -> None:
        """The last boundary was there."""
        self.ended = True


async def _form(request: Request, core: Core) -> Images:
    async def stream() -> AsyncGenerator[bytes, None]:
        if header(request, b"content-encoding"):
            yield await read_body(request, core)
            return
        async for piece in request.stream():
            yield piece

    told = Headers(raw=[(b"content-type", _with_boundary_alone(request.scope["eca"].headers[b"content-type"]))])
    reader = _Form(told, stream(), max_files=core.settings.max_images)
    try:
        form = await reader.parse()
    except MultiPartException as error:
        raise ServiceError("bad_request", error.message) from None
    try:
        if not reader.ended:
            raise ServiceError("bad_request", "the form is cut off: its last boundary is missing")
        require_no_option((name for name, part in form.multi_items() if isinstance(part, str)), "in a form")
        files = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if form and not files:
            raise ServiceError(
                "bad_request", "the form has text fields but no file; curl sends one with -F image=@cat.jpg"
            )
        return files
    finally:
        await form.close()


def _with_boundary_alone(content_type: bytes) -> bytes:
    """A form's Content-Type without what else it says: of each charset that is none Python keeps the name for ever, and
    one that there is may hold up the event loop. Raises bad_request where it names no boundary.
    """
    if len(content_type) > MOST_TYPE_BYTES:
        raise ServiceError("bad_request", f"the form's Content-Type has more than {MOST_TYPE_BYTES} bytes")
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:  # as of a script that sets the header and sends a FormData
        raise ServiceError(
            "bad_request",
            "the form's Content-Type names no boundary; leave that header to the library that makes the form",
        )
    return b'multipart/form-data; boundary="%b"' % boundary.replace(b"\\", rb"\\").replace(b'"', rb"\"")


def from_base64(text: str) -> bytes | ServiceError:
    """The bytes that the text encodes, or what is wrong with it."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return ServiceError(
            "bad_request",
            "the text is not base64: A-Z, a-z, 0-9, + and /, padded with =, without line breaks and without a "
            "data:...;base64, prefix",
        )


def _base64(text: bytes) -> list[bytes | ServiceError]:
    body = parsed(text)
    entries = body.get("images") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise ServiceError("bad_request", 'the JSON body must be {"images": [{"b64": "..."}]}')
    texts = [entry.get("b64") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(text, str) for text in texts):
        raise ServiceError("bad_request", 'each entry of "images" must be {"b64": "..."}')
    for members in (body, *entries):
        require_no_option(members, "in JSON")
    return [from_base64(str(text)) for text in texts]
