"""From the body of an HTTP request to encoded images."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from eca_service.core import require_few
from eca_service.errors import ServiceError

Images = Sequence[bytes | ServiceError]
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def read_body(request: Request, most: int) -> bytes:
    """The whole body, decompressed where its Content-Encoding says gzip or deflate; at most `most` bytes.

    Raises body_too_large, or bad_request for another encoding or damaged data.
    """
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in WINDOWS:
        raise ServiceError("bad_request", f"Content-Encoding is {encoding!r}; gzip and deflate are taken")
    expander = zlib.decompressobj(WINDOWS[encoding])
    try:
        expanded = expander.decompress(body, most + 1)
    except zlib.error as error:
        raise ServiceError("bad_request", f"the body is not {encoding}: {error}") from None
    if len(expanded) > most:
        raise ServiceError("body_too_large", f"the body has more than {most} bytes when it is decompressed")
    if not expander.eof:
        raise ServiceError("bad_request", f"the {encoding} body is cut off")
    return expanded


async def read_json(request: Request, most: int) -> Any:
    """The body as JSON. Raises bad_request where it is none."""
    try:
        return json.loads(await read_body(request, most))
    except (ValueError, RecursionError):
        raise ServiceError("bad_request", "the body is not valid JSON") from None


async def read_images(request: Request, most_bytes: int, most_images: int) -> Images:
    """The encoded images of a request, in their order; bad_request where the body is not what it says."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        # Starlette turns a malformed form into its own HTTPException, which the application answers as bad_request.
        async with request.form(max_files=most_images) as form:
            return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if kind == "application/json":
        return _base64(await read_json(request, most_bytes), most_images)
    body = await read_body(request, most_bytes)
    return [body] if body else []


def from_base64(text: str) -> bytes | ServiceError:
    """The bytes that the text encodes, or what is wrong with it."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ServiceError("bad_request", "the text is not base64")


def _base64(body: Any, most: int) -> list[bytes | ServiceError]:
    entries = body.get("images") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise ServiceError("bad_request", 'the JSON body must be {"images": [{"b64": "..."}]}')
    require_few(len(entries), most)
    texts = [entry.get("b64") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(text, str) for text in texts):
        raise ServiceError("bad_request", 'each entry of "images" must be {"b64": "..."}')
    return [from_base64(str(text)) for text in texts]
