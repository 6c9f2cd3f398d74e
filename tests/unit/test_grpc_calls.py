"""What is around every gRPC call, where only a caller's bad timing would show it."""

from __future__ import annotations

import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import grpc
import pytest
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.grpc_calls import Interceptor
from eca_service.peers import Peers
from eca_service.settings import Settings
from tritonclient.grpc import service_pb2

Details = namedtuple("Details", "method invocation_metadata")


class Gone:
    """The context of a call whose caller goes in the instant in which it would be told: gRPC can send no more."""

    def __init__(self) -> None:
        self.told: list[grpc.StatusCode] = []

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    def trailing_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        self.told.append(code)
        raise grpc.aio.InternalError('Failed "execute_batch"')


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ServiceError("deadline_exceeded", "too late"), "DEADLINE_EXCEEDED"),
        (NotImplementedError(), "UNIMPLEMENTED"),
    ],
)
async def test_a_caller_that_goes_as_it_is_refused_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception, status: str
) -> None:
    async def behaviour(*_: object) -> Any:
        raise failure

    async def continuation(_: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(behaviour)

    interceptor = Interceptor(Core(Settings(repository=tmp_path), Peers()))
    handler = await interceptor.intercept_service(
        continuation, Details("/inference.GRPCInferenceService/ModelInfer", ())
    )
    context = Gone()
    with caplog.at_level(logging.WARNING):
        await handler.unary_unary(service_pb2.ModelInferRequest(), context)
    assert [code.name for code in context.told] == [status]
    assert caplog.records == []
