"""Around every gRPC call: who may make it, its record, its errors. What middleware.py is for HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from eca_service.access import HEALTH_SERVICE, OPEN_CALLS
from eca_service.admission import Permit
from eca_service.arrivals import Arrivals
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.framing import FRAMING_BYTES, require_little
from eca_service.journal import Entry

logger = logging.getLogger(__name__)
Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio has no types
METHOD = re.compile(r"[A-Za-z0-9_.]{1,128}/[A-Za-z0-9_]{1,128}")
PROTOCOL = "inference.GRPCInferenceService/"
INFER = PROTOCOL + "ModelInfer"
_permit: ContextVar[Permit] = ContextVar("permit")


def permit_of_call() -> Permit:
    """What the inference that is being answered was let in with; it is given back when the call ends."""
    return _permit.get()


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks for the key, counts the call against its rate and lets it in before its message is read; writes it down.

    Health checks and reflection are not written down. To gRPC all handlers are ones for streams: for the others it
    reads the message first, as many and as large ones as callers care to send.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        settings = core.settings
        slow = max(1, settings.max_inflight_bytes // settings.max_body_bytes)
        self._images, self._others = Arrivals(slow), Arrivals(slow)  # anybody may send others: they need no key

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The method's handler with all this around it."""
        method = details.method.lstrip("/")
        handler = await continuation(details)
        if handler and method.startswith(HEALTH_SERVICE):
            return self._unwritten(handler)
        headers = dict(details.invocation_metadata)
        access, caller = self._core.access, ""
        if not access.is_open_call(method):
            try:
                caller = access.caller(_bytes(headers, "authorization"), _bytes(headers, "x-api-key"))
            except ServiceError as error:
                return _ending(partial(_refuse, error=error), self._begin(method, headers, ""))
        if handler is None or handler.unary_unary is None:
            lacking = handler is None or method.startswith(PROTOCOL)  # else it is reflection, which is gRPC's own
            return _ending(_lack, self._begin(method, headers, caller)) if lacking else self._unwritten(handler)

        async def answered(_: object, context: Context) -> Any:
            return await self._answer(handler, context, self._begin(method, headers, caller))

        return grpc.stream_unary_rpc_method_handler(answered, None, handler.response_serializer)

    def _unwritten(self, handler: Any) -> Any:
        """A handler of gRPC's own: health, reflection."""

        async def answered(_: object, context: Context) -> AsyncIterator[Any]:
            try:
                if handler.stream_stream:
                    answers = handler.stream_stream(self._requests(handler, context), context)
                else:
                    message = await self._others.only(context.read, self._deadline(context))
                    request = _read(handler, message)
                    if handler.unary_unary:
                        yield await handler.unary_unary(request, context)
                        return
                    answers = handler.unary_stream(request, context)
                async for answer in answers:
                    yield answer
            except ServiceError as error:
                _refuse(context, Entry("grpc"), error)

        return grpc.stream_stream_rpc_method_handler(answered, None, handler.response_serializer)

    async def _requests(self, handler: Any, context: Context) -> AsyncIterator[Any]:
        while (message := await self._others.message(context.read, self._deadline(context))) is not None:
            yield _read(handler, message)

    def _deadline(self, context: Context) -> float:
        """When a message must have come, by the event loop's clock."""
        settings = self._core.settings
        left_s = context.time_remaining()
        left_s = settings.deadline_ms / 1000 if left_s is None else left_s
        return asyncio.get_running_loop().time() + min(left_s, settings.body_timeout_ms / 1000)

    def _begin(self, method: str, headers: dict[str, str], caller: str) -> Entry:
        quiet = method in OPEN_CALLS
        trace = None if quiet else self._core.tracing.begin(headers.get("traceparent"), headers.get("tracestate"))
        entry = Entry("grpc", headers.get("x-request-id", ""), trace, quiet)
        # what is no name would be lines and colours of its own in a log for people
        entry.route, entry.caller = method if METHOD.fullmatch(method) else "_OTHER", caller
        return entry

    async def _answer(self, handler: Any, context: Context, entry: Entry) -> Any:
        entry.status = "OK"
        core, permit = self._core, None
        try:
            if entry.route not in OPEN_CALLS:
                entry.account = core.access.admit(entry.caller, _address(context.peer()))
            arrivals = self._others
            if entry.route == INFER:
                permit, arrivals = core.enter(0, entry), self._images
                _permit.set(permit)
            message = await arrivals.only(context.read, self._deadline(context))
            entry.arrived(len(message))
            if entry.size > core.settings.max_body_bytes + FRAMING_BYTES:
                raise core.too_large()
            if permit:
                permit.cover(entry.size)
                require_little(message)
            request = _read(handler, message)
            del message  # the request holds its own copy
            answer = await handler.unary_unary(request, context)
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
            _refuse(
                context, entry, ServiceError("internal", "the service failed; look for the request's id in its log")
            )
        finally:
            if permit:
                permit.release()
            entry.close()


def _read(handler: Any, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        raise ServiceError("bad_request", "the message is not a valid request of this method") from None


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
    entry.failed(error)
    entry.status = error.kind.grpc
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
