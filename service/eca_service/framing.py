"""What a ModelInfer message has around its images, counted in its bytes, before protobuf makes objects of them.

An empty field is two bytes, in gzip far less, and up to ninety in memory; to read millions takes seconds.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from eca_service.errors import ServiceError

FRAMING_BYTES = 64 << 10  # what a message may have around its images
VARINT, I64, LEN, I32 = 0, 1, 2, 5
_Infer, _Contents = service_pb2.ModelInferRequest, service_pb2.InferTensorContents
# The fields that are images are None; those that hold them, what they hold.
_IMAGES: dict[int, Any] = {
    _Infer.RAW_INPUT_CONTENTS_FIELD_NUMBER: None,
    _Infer.INPUTS_FIELD_NUMBER: {
        _Infer.InferInputTensor.CONTENTS_FIELD_NUMBER: {_Contents.BYTES_CONTENTS_FIELD_NUMBER: None}
    },
}


def require_little(message: bytes) -> None:
    """Raises bad_request where there is more than FRAMING_BYTES around the images."""
    try:
        around = _around(message, 0, len(message), _IMAGES, FRAMING_BYTES)
    except IndexError:
        return  # it is damaged: protobuf will say so
    if around > FRAMING_BYTES:
        raise ServiceError(
            "bad_request",
            f"the message has more than {FRAMING_BYTES} bytes around its images, which are BYTES in "
            "raw_input_contents or bytes_contents",
        )


def _around(message: bytes, at: int, end: int, images: dict[int, Any], most: int) -> int:
    """The bytes from `at` to `end` that are no images; it stops counting above `most`. Raises IndexError."""
    found = 0
    while at < end and found <= most:
        began = at
        tag, at = _varint(message, at)
        kind, field, size = tag & 7, tag >> 3, 0
        if kind == LEN:
            size, at = _varint(message, at)
        elif kind == VARINT:
            _, at = _varint(message, at)
        elif kind in (I64, I32):
            at += 8 if kind == I64 else 4
        found += at - began
        if size and field not in images:
            found += size
        elif size and images[field]:
            found += _around(message, at, at + size, images[field], most - found)
        at += size
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while (octet := message[at]) & 0x80:
        number |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise IndexError(at)
    return number | octet << shift, at + 1
