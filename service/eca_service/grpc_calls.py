"""Around every gRPC call: who may make it, its record, its errors. What middleware.py is for HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc

from eca_service.access import HEALTH_SERVICE, OPEN_CALLS
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.journal import Entry

logger = logging.getLogger(__name__)
Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio has no types
Behaviour = Callable[[Any, Context], Awaitable[Any]]
_entry: ContextVar[Entry] = ContextVar("entry")


def entry_of_call() -> Entry:
    """The record of the call that is being answered."""
    return _entry.get()


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks for the key before the message is read; then counts the call against its rate and writes it down.

    Health checks and reflection are not written down.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The method's handler with all this around it."""
        method = details.method.lstrip("/")
        handler = await continuation(details)
        if handler is None or method.startswith(HEALTH_SERVICE):
            return handler
        headers = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        access, caller = self._core.access, ""
        if not access.is_open_call(method):
            try:
                caller = access.caller(_bytes(headers, "authorization"), _bytes(headers, "x-api-key"))
            except ServiceError as error:
                return _refusing(error, self._begin(method, headers, ""))
        if handler.unary_unary is None:
            return handler

        async def answered(request: Any, context: Context) -> Any:
            return await self._answer(handler.unary_unary, request, context, self._begin(method, headers, caller))

        return grpc.unary_unary_rpc_method_handler(answered, handler.request_deserializer, handler.response_serializer)

    def _begin(self, method: str, headers: dict[str, str], caller: str) -> Entry:
        quiet = method in OPEN_CALLS
        trace = None if quiet else self._core.tracing.begin(headers.get("traceparent"), headers.get("tracestate"))
        entry = Entry("grpc", headers.get("x-request-id", ""), trace, quiet)
        entry.route, entry.caller = method, caller
        return entry

    async def _answer(self, behaviour: Behaviour, request: Any, context: Context, entry: Entry) -> Any:
        entry.size = request.ByteSize()
        entry.status = "OK"
        _entry.set(entry)
        try:
            if entry.route not in OPEN_CALLS:
                entry.account = self._core.access.admit(entry.caller, _address(context.peer()))
            answer = await behaviour(request, context)
            if not context.trailing_metadata():
                context.set_trailing_metadata(_stamps(entry))
            return answer
        except ServiceError as error:
            await _refuse(context, error, entry)
        except asyncio.CancelledError:
            entry.code, entry.status = "client_closed", "CANCELLED"
            raise
        except NotImplementedError:  # a method of the protocol that the service does not have
            entry.code, entry.status = "unimplemented", "UNIMPLEMENTED"
            await _abort(context, "UNIMPLEMENTED", "the service does not have this method", _stamps(entry))
        except grpc.aio.AbortError:
            raise
        except Exception:
            logger.exception("request %s failed", entry.request_id)
            failure = ServiceError("internal", "the service failed; its log has the request's id")
            await _refuse(context, failure, entry)
        finally:
            entry.close()


def _refusing(error: ServiceError, entry: Entry) -> Any:
    """A handler that ends the call at once: one for streams, which has no message read first."""

    async def refuse(messages: Any, context: Context) -> None:
        try:
            await _refuse(context, error, entry)
        finally:
            entry.close()

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _refuse(context: Context, error: ServiceError, entry: Entry) -> None:
    """Ends the call with the error's status; its stable code and the request's id travel as trailing metadata."""
    entry.code, entry.status = error.code, error.kind.grpc
    trailing = [("eca-code", error.code), *_stamps(entry)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after", str(error.retry_after_s)))
    await _abort(context, error.kind.grpc, str(error), tuple(trailing))


async def _abort(context: Context, status: str, details: str, trailing: tuple[tuple[str, str], ...]) -> None:
    with contextlib.suppress(grpc.aio.InternalError):  # the caller went in this instant
        await context.abort(grpc.StatusCode[status], details, trailing)


def _stamps(entry: Entry) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", entry.request_id), ("server-timing", entry.server_timing()))


def _address(peer: str) -> str:
    """The client's address in gRPC's notation, such as ipv4:127.0.0.1:5000 and ipv6:%5B::1%5D:5000."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _bytes(headers: dict[str, str], name: str) -> bytes | None:
    value = headers.get(name)
    return None if value is None else value.encode()
