"""What is around every gRPC call, where only a caller's bad timing would show it."""

from __future__ import annotations

import gc
import logging
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


async def test_what_is_no_message_is_the_caller_s_fault(tmp_path: Path) -> None:
    async def behaviour(*_: object) -> Any:
        raise AssertionError("it cannot be asked")

    context = await called(tmp_path, behaviour, b"\xff" * 40)
    assert (context.status.name, context.trailing["eca-code"]) == ("INVALID_ARGUMENT", "bad_request")


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
