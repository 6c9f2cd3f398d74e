"""Requests of the Open Inference Protocol, whole ones, and the parsers that must take any bytes in their place."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

from eca_service import oip
from eca_service.bodies import Images
from eca_service.oip_http import _parse as parse

from tests.unit.test_contract import CONTRACT

MOST_IMAGES = 64


def parse_binary(body: bytes, count: int) -> Sequence[bytes]:
    """A BYTES tensor as both HTTP's binary extension and gRPC's raw contents hold it."""
    return oip.unpack(body, count)


def parse_http(body: bytes, header_length: str | None) -> Images:
    """The body of `infer` over HTTP, with the value of its Inference-Header-Content-Length."""
    return parse(body, header_length, CONTRACT, MOST_IMAGES).images


def binary(images: Sequence[bytes]) -> bytes:
    """The images, each behind its length."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def whole_requests() -> list[tuple[bytes, str | None]]:
    """Bodies, and the header length that belongs to each."""
    images = [b"\xff\xd8\xff an image", b"", b"\x89PNG"]
    tensor: dict[str, Any] = {"name": "image", "shape": [3], "datatype": "BYTES"}
    plain = tensor | {"data": [base64.b64encode(image).decode() for image in images]}
    column = plain | {"shape": [3, 1], "data": [[text] for text in plain["data"]]}
    tail = binary(images)
    packed = tensor | {"parameters": {"binary_data_size": len(tail)}}
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "score"}]
    found: list[tuple[bytes, str | None]] = []
    for inputs, after in ((plain, b""), (column, b""), (packed, tail)):
        head = {
            "id": "7",
            "inputs": [inputs],
            "outputs": outputs,
            "parameters": {"top_k": 2, "binary_data_output": True},
        }
        text = json.dumps(head).encode()
        found.append((text + after, str(len(text)) if after else None))
    return found
