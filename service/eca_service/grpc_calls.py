"""Around every gRPC call: who may make it, its record, its errors. What middleware.py is for HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from eca_service.access import HEALTH_SERVICE, OPEN_CALLS
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.journal import Entry

logger = logging.getLogger(__name__)
Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio has no types
PROTOCOL = "inference.GRPCInferenceService/"
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
                return _ending(partial(_refuse, error=error), self._begin(method, headers, ""))
        if handler.unary_unary is None:
            lacking = method.startswith(PROTOCOL)  # else it is reflection, which is gRPC's own
            return _ending(_lack, self._begin(method, headers, caller)) if lacking else handler

        async def answered(message: bytes, context: Context) -> Any:
            return await self._answer(handler, message, context, self._begin(method, headers, caller))

        return grpc.unary_unary_rpc_method_handler(answered, None, handler.response_serializer)

    def _begin(self, method: str, headers: dict[str, str], caller: str) -> Entry:
        quiet = method in OPEN_CALLS
        trace = None if quiet else self._core.tracing.begin(headers.get("traceparent"), headers.get("tracestate"))
        entry = Entry("grpc", headers.get("x-request-id", ""), trace, quiet)
        entry.route, entry.caller = method, caller
        return entry

    async def _answer(self, handler: Any, message: bytes, context: Context, entry: Entry) -> Any:
        entry.size = len(message)
        entry.status = "OK"
        _entry.set(entry)
        try:
            if entry.route not in OPEN_CALLS:
                entry.account = self._core.access.admit(entry.caller, _address(context.peer()))
            answer = await handler.unary_unary(_read(handler, message), context)
            if not context.trailing_metadata():
                context.set_trailing_metadata(_stamps(entry))
            return answer
        except ServiceError as error:
            _refuse(context, entry, error)
        except asyncio.CancelledError:
            entry.code, entry.status = "client_closed", "CANCELLED"
            raise
        except NotImplementedError:
            _lack(context, entry)
        except Exception:
            logger.exception("request %s failed", entry.request_id)
            _refuse(context, entry, ServiceError("internal", "the service failed; its log has the request's id"))
        finally:
            entry.close()


def _read(handler: Any, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        raise ServiceError("bad_request", "the message is not what this method takes") from None


def _ending(end: Callable[[Context, Entry], None], entry: Entry) -> Any:
    """A handler that ends the call at once: one for streams, which has no message read first."""

    async def ended(messages: Any, context: Context) -> None:
        end(context, entry)
        entry.close()

    return grpc.stream_stream_rpc_method_handler(ended)


def _refuse(context: Context, entry: Entry, error: ServiceError) -> None:
    """Ends the call with the error's status; its stable code and the request's id travel as trailing metadata.

    Not by `context.abort`, whose exception would keep the request's images until garbage is looked for.
    """
    entry.code, entry.status = error.code, error.kind.grpc
    trailing = [("eca-code", error.code), *_stamps(entry)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after", str(error.retry_after_s)))
    context.set_code(grpc.StatusCode[entry.status])
    context.set_details(str(error))
    context.set_trailing_metadata(tuple(trailing))


def _lack(context: Context, entry: Entry) -> None:
    """Ends a call of a method of the protocol that the service does not have."""
    entry.code, entry.status = "unimplemented", "UNIMPLEMENTED"
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details("the service does not have this method")
    context.set_trailing_metadata(_stamps(entry))


def _stamps(entry: Entry) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", entry.request_id), ("server-timing", entry.server_timing()))


def _address(peer: str) -> str:
    """The client's address in gRPC's notation, such as ipv4:127.0.0.1:5000 and ipv6:%5B::1%5D:5000."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _bytes(headers: dict[str, str], name: str) -> bytes | None:
    value = headers.get(name)
    return None if value is None else value.encode()
