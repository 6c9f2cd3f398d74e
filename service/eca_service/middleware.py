"""Around every HTTP request: its record and its headers, then who may call and how much is taken in.

Plain ASGI, which costs microseconds where Starlette's BaseHTTPMiddleware starts a task for each request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from eca_service.admission import Permit
from eca_service.arrivals import Arrivals
from eca_service.connections import ABORT, SPOILED
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.journal import Entry
from eca_service.oip_http import is_oip
from eca_service.problems import answer

logger = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
PIECE_BYTES = 64 << 10  # of an answer: more waits for the line in memory that nobody counts
QUIET = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"}
# What every answer says to a browser, unless its route says otherwise: show nothing, load nothing, keep nothing.
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Exchange:
    """What the routes know of their request beyond the ASGI scope."""

    __slots__ = ("entry", "headers", "permit", "receive")

    def __init__(self, entry: Entry, headers: dict[bytes, bytes], receive: Receive) -> None:
        self.entry = entry
        self.headers = headers
        self.receive = receive
        self.permit: Permit | None = None


class Journal:
    """Writes the request down, stamps its answer, and answers for what nobody caught."""

    def __init__(self, app: Any, core: Core) -> None:
        self.app = app
        self.core = core

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        quiet = path in QUIET
        entry = Entry(
            "oip" if is_oip(path) else "http",
            headers.get(b"x-request-id", b"").decode("latin-1"),
            None if quiet else self.core.tracing.begin(_text(headers, b"traceparent"), _text(headers, b"tracestate")),
            quiet,
        )
        scope["eca"] = Exchange(entry, headers, receive)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                if entry.code == "ok" and message["status"] >= 400:
                    entry.code = str(message["status"])
                given = {key for key, _ in message["headers"]}
                extra = [(b"x-request-id", entry.request_id.encode())]
                extra += [header for header in HEADERS if header[0] not in given]
                if b"server-timing" not in given:
                    extra.append((b"server-timing", entry.server_timing().encode()))
                if self.core.leaving:  # so that no caller sends its next request into a closing connection
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except asyncio.CancelledError:  # by the server, which ends and waits no longer
            entry.code = "draining"
            if not entry.status:
                await answer(ServiceError("draining", "the service is shutting down"), scope)(scope, receive, stamped)
        except Exception:
            logger.exception("request %s failed", entry.request_id)
            entry.code = "internal"
            if entry.status:  # its answer has begun: the server cuts it off
                raise
            error = ServiceError("internal", "the service failed; look for the request's id in its log")
            await answer(error, scope)(scope, receive, stamped)
        finally:
            entry.route = f"{scope['method']} {getattr(scope.get('route'), 'path', '')}".strip()
            entry.close()


class Guard:
    """Asks for the key, counts against its rate, gives the permit, and bounds the body while it comes."""

    def __init__(self, app: Any, core: Core) -> None:
        self.app = app
        self.core = core
        self._bodies = Arrivals(max(1, core.settings.max_inflight_images // 2))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, access = scope["eca"], self.core.access
        entry, headers = exchange.entry, exchange.headers
        began = asyncio.get_running_loop().time()

        async def limited() -> Message:
            # who sends slowly shares half of the permits: the others are for those who do not
            message = await (self._bodies.piece(receive, began) if exchange.permit else receive())
            if SPOILED in scope:
                raise ServiceError("bad_request", "the body is not valid chunked encoding (RFC 9112, 7.1)")
            if body := message.get("body"):
                entry.arrived(len(body))
            if entry.size > self.core.settings.max_body_bytes:
                raise self.core.too_large()
            if exchange.permit:
                exchange.permit.cover(entry.size)
            return message

        async def answered(message: Message) -> None:
            if exchange.permit:  # before it waits for a caller that takes no answers, which may be for ever
                exchange.permit.release()
                exchange.permit = None
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await send(message)
                return
            with self.core.admission.answering(len(body), cut_off):
                for at in range(0, len(body), PIECE_BYTES):
                    more = at + PIECE_BYTES < len(body) or message.get("more_body", False)
                    await send({**message, "body": body[at : at + PIECE_BYTES], "more_body": more})

        def cut_off() -> None:
            entry.code = "overloaded"
            if abort := scope.get(ABORT):
                abort()

        try:
            if not access.is_open(scope["path"]):
                entry.caller = access.caller(headers.get(b"authorization"), headers.get(b"x-api-key"))
                entry.account = access.admit(entry.caller, (scope.get("client") or ("",))[0])
            if scope["method"] == "POST":
                length = headers.get(b"content-length", b"0")
                exchange.permit = self.core.enter(int(length) if length.isdigit() else 0, entry)
            await self.app(scope, limited, answered)
        except ServiceError as error:  # refused here, or by `Direct`: what FastAPI looks at it answers
            entry.failed(error)
            await answer(error, scope)(scope, receive, answered)
        finally:
            if exchange.permit:
                exchange.permit.release()


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")
