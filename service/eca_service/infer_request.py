"""Requests for Triton's ModelInfer, as the bytes that are sent."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from eca_service.contract import INPUT, Contract

_RAW_INPUT = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])  # the field's tag


def with_pixels(images: Sequence[NDArray[np.uint8]], contract: Contract, outputs: tuple[str, ...]) -> bytes:
    """A request that holds its images, uint8 [H, W, 3] each.

    protobuf would copy the pixels three times more: written by hand they are joined, once.
    """
    shape = images[0].shape
    head = _head(contract.name, contract.version, outputs, (len(images), *shape))
    size = len(images) * math.prod(shape)
    return b"".join([head, _RAW_INPUT, _varint(size), *(image.data for image in images)])


def with_place(
    images: Sequence[NDArray[np.uint8]], contract: Contract, outputs: tuple[str, ...], region: str, offset: int
) -> bytes:
    """A request whose images lie in shared memory: in Triton's `region`, one after the other from byte `offset` on."""
    shape = (len(images), *images[0].shape)
    return _head(contract.name, contract.version, outputs, shape, (region, offset, math.prod(shape)))


@functools.lru_cache(4096)
def _head(
    name: str,
    version: int,
    outputs: tuple[str, ...],
    shape: tuple[int, ...],
    place: tuple[str, int, int] | None = None,
) -> bytes:
    """All of the request but its pixels; or all of it, where they lie in a `place`: region, offset, bytes."""
    request = service_pb2.ModelInferRequest(model_name=name, model_version=str(version))
    tensor = request.inputs.add(name=INPUT, datatype="UINT8", shape=shape)
    if place:
        tensor.parameters["shared_memory_region"].string_param = place[0]
        tensor.parameters["shared_memory_offset"].int64_param = place[1]
        tensor.parameters["shared_memory_byte_size"].int64_param = place[2]
    for output in outputs:
        request.outputs.add(name=output)
    head: bytes = request.SerializeToString()
    return head


def _varint(number: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
