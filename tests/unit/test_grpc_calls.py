"""What is around every gRPC call, where only a caller's bad timing would show it."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import grpc
import pytest
from eca_service import grpc_calls
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.grpc_calls import Interceptor
from eca_service.peers import Peers
from eca_service.settings import Settings
from tritonclient.grpc import service_pb2

Details = namedtuple("Details", "method invocation_metadata")
REQUEST, CONTENTS = service_pb2.ModelInferRequest, service_pb2.InferTensorContents
TENSOR = REQUEST.InferInputTensor
MANY = 1 << 20


class Call:
    """The context of a call; keeps what its caller is told."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.status, self.details = grpc.StatusCode.OK, ""
        self.trailing: dict[str, str] = {}

    async def read(self) -> bytes:
        return self.message

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    def trailing_metadata(self) -> dict[str, str]:
        return self.trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self.status = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing: tuple[tuple[str, str], ...]) -> None:
        self.trailing = dict(trailing)


async def called(folder: Path, behaviour: Any, message: bytes = b"") -> Call:
    async def continuation(_: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(behaviour, service_pb2.ModelInferRequest.FromString)

    interceptor = Interceptor(Core(Settings(repository=folder), Peers()))
    details = Details("/inference.GRPCInferenceService/ModelInfer", ())
    handler, context = await interceptor.intercept_service(continuation, details), Call(message)
    await handler.stream_unary(None, context)
    return context


@pytest.mark.parametrize(
    ("failure", "status", "told"),
    [
        (ServiceError("deadline_exceeded", "too late"), "DEADLINE_EXCEEDED", {"eca-code": "deadline_exceeded"}),
        (ServiceError("internal", "Triton failed on m"), "INTERNAL", {"eca-code": "internal"}),
        (ServiceError("overloaded", "full"), "RESOURCE_EXHAUSTED", {"eca-code": "overloaded", "retry-after": "1"}),
        (NotImplementedError(), "UNIMPLEMENTED", {}),
        (ZeroDivisionError("a secret"), "INTERNAL", {"eca-code": "internal"}),
    ],
)
async def test_a_call_that_fails_ends_with_its_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception, status: str, told: dict[str, str]
) -> None:
    async def behaviour(*_: object) -> Any:
        raise failure

    with caplog.at_level(logging.INFO):
        context = await called(tmp_path, behaviour)
    assert context.status.name == status
    assert context.trailing.pop("x-request-id")
    assert "total;dur=" in context.trailing.pop("server-timing")
    assert context.trailing == told
    assert "secret" not in context.details
    *errors, line = caplog.records
    assert [record.exc_info is not None for record in errors] == [True] * isinstance(failure, ZeroDivisionError)
    ours = status in {"INTERNAL", "DEADLINE_EXCEEDED"}
    assert ("reason" in line.fields) == ours  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("peer", "address"), [("ipv4:127.0.0.1:5000", "127.0.0.1"), ("ipv6:%5Bfd00::1%5D:5000", "fd00::1")]
)
def test_a_caller_s_address_is_without_its_port(peer: str, address: str) -> None:
    """As uvicorn tells it: one caller is one over all protocols."""
    assert grpc_calls._address(peer) == address


@pytest.mark.parametrize("method", ["nobody.Knows/This", "x/y\n2026 INFO all is well", "x/\x1b[31my", "x/" + "y" * 129])
async def test_what_is_no_name_of_a_method_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """gRPC lets any bytes pass for one, and the log for people shows them as they are."""

    async def continuation(_: object) -> None:
        return None

    interceptor = Interceptor(Core(Settings(repository=tmp_path), Peers()))
    handler = await interceptor.intercept_service(continuation, Details(f"/{method}", ()))
    with caplog.at_level(logging.INFO):
        await handler.stream_stream(None, Call(b""))
    told = "_OTHER" if method.startswith("x") else method
    assert caplog.records[-1].fields["route"] == told  # type: ignore[attr-defined]


async def test_what_is_no_message_is_the_caller_s_fault(tmp_path: Path) -> None:
    async def behaviour(*_: object) -> Any:
        raise AssertionError("it cannot be asked")

    context = await called(tmp_path, behaviour, b"\xff" * 40)
    assert (context.status.name, context.trailing["eca-code"]) == ("INVALID_ARGUMENT", "bad_request")


def empty(field: int) -> bytes:
    """That field a million times, with nothing in it."""
    return bytes([field << 3 | 2, 0]) * MANY


def within(field: int, inner: bytes) -> bytes:
    """A message of that one field."""
    head: bytes = service_pb2.ModelInferRequest(raw_input_contents=[inner]).SerializeToString()
    return bytes([field << 3 | 2]) + head[1:]


@pytest.mark.parametrize(
    "message",
    [
        empty(REQUEST.INPUTS_FIELD_NUMBER),
        empty(REQUEST.OUTPUTS_FIELD_NUMBER),
        empty(REQUEST.RAW_INPUT_CONTENTS_FIELD_NUMBER),
        within(
            REQUEST.INPUTS_FIELD_NUMBER,
            within(TENSOR.CONTENTS_FIELD_NUMBER, empty(CONTENTS.BYTES_CONTENTS_FIELD_NUMBER)),
        ),
        within(
            REQUEST.INPUTS_FIELD_NUMBER,
            within(TENSOR.CONTENTS_FIELD_NUMBER, within(CONTENTS.INT64_CONTENTS_FIELD_NUMBER, bytes(MANY))),
        ),
        within(REQUEST.INPUTS_FIELD_NUMBER, within(TENSOR.SHAPE_FIELD_NUMBER, bytes(MANY))),
    ],
    ids=["inputs", "outputs", "raw", "bytes", "numbers", "shape"],
)
async def test_a_message_of_millions_of_parts_is_refused_by_its_bytes(tmp_path: Path, message: bytes) -> None:
    """To make objects of them takes forty times their memory, and seconds in which nobody is answered."""

    async def behaviour(*_: object) -> Any:
        raise AssertionError("it is not asked")

    assert REQUEST.FromString(message), "protobuf takes it"
    started = time.process_time()
    context = await called(tmp_path, behaviour, message)
    assert time.process_time() - started < 1
    assert (context.status.name, context.trailing["eca-code"]) == ("INVALID_ARGUMENT", "bad_request")
    assert "bytes around its images" in context.details


@pytest.mark.parametrize(
    "message",
    [b"\xff" * MANY, b"\x80" * MANY, b"\x2a\xff\x7f", b"\x0b" * 9, b"\x2a\x04\x2a\x7f"],
    ids=["ones", "a number without end", "cut off", "groups", "larger than what it is in"],
)
async def test_what_is_damaged_is_left_to_protobuf(tmp_path: Path, message: bytes) -> None:
    async def behaviour(*_: object) -> Any:
        raise AssertionError("it is not asked")

    context = await called(tmp_path, behaviour, message)
    assert context.details == "bad_request: the message is not a valid request of this method"


async def test_images_may_be_many_and_large(tmp_path: Path) -> None:
    images = [bytes(size) for size in (0, 1, 127, 128, 100_000)] * 50

    async def behaviour(request: Any, _: object) -> Any:
        found = list(request.raw_input_contents) or list(request.inputs[0].contents.bytes_contents)
        assert [len(image) for image in found] == [len(image) for image in images]
        return b"answered"

    request = REQUEST(model_name="m", id="x" * 1000, raw_input_contents=images)
    request.parameters["top_k"].int64_param = 3
    assert (await called(tmp_path, behaviour, request.SerializeToString())).status.name == "OK"
    request.inputs.add(name="image", datatype="BYTES", shape=[len(images)]).contents.bytes_contents.extend(images)
    del request.raw_input_contents[:]
    assert (await called(tmp_path, behaviour, request.SerializeToString())).status.name == "OK"


async def test_a_refused_call_keeps_nothing(tmp_path: Path) -> None:
    """Without a search for garbage, which is rare: an exception in a circle would keep its frames, and the images."""
    kept: list[weakref.ref[Any]] = []

    class Image: ...

    async def behaviour(*_: object) -> Any:
        image = Image()
        kept.append(weakref.ref(image))
        raise ServiceError("image_undecodable", "no image")

    gc.disable()
    try:
        await called(tmp_path, behaviour)
        assert kept[0]() is None
    finally:
        gc.enable()
