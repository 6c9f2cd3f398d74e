"""The ASGI application: what wraps every HTTP request, how errors are answered, start and end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eca_service import insight_routes, oip_http, openapi, page, routes
from eca_service.admission import Permit
from eca_service.core import Core
from eca_service.errors import ServiceError, problem
from eca_service.grpc_server import GrpcServer
from eca_service.journal import Entry
from eca_service.negotiation import Negotiated
from eca_service.peers import Peers
from eca_service.settings import Settings

logger = logging.getLogger(__name__)
NO_ROUTE = "no route has this method and path; /docs lists them"
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Exchange:
    """What the routes know of their request beyond the ASGI scope."""

    __slots__ = ("entry", "permit", "receive")

    def __init__(self, entry: Entry, receive: Receive) -> None:
        self.entry = entry
        self.receive = receive
        self.permit: Permit | None = None


class Wrapped:
    """Around every request: its id, its permit and size limit, its metrics."""

    def __init__(self, app: Any, core: Core) -> None:
        self.app = app
        self.core = core

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        entry = Entry(
            "oip" if oip_http.is_oip(scope["path"]) else "http", headers.get(b"x-request-id", b"").decode("latin-1")
        )
        exchange = scope["eca"] = Exchange(entry, receive)
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.core.settings.max_body_bytes:
                raise self.core.too_large()
            if exchange.permit:
                exchange.permit.cover(taken)
            return message

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                if entry.code == "ok" and message["status"] >= 400:
                    entry.code = str(message["status"])
                extra = [(b"x-request-id", entry.request_id.encode()), (b"x-content-type-options", b"nosniff")]
                if not any(key == b"server-timing" for key, _ in message["headers"]):
                    extra.append((b"server-timing", f"total;dur={1000 * entry.seconds():.3f}".encode()))
                if self.core.leaving:  # so that no caller sends its next request into a closing connection
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            if scope["method"] == "POST":
                length = headers.get(b"content-length", b"0")
                exchange.permit = self.core.enter(int(length) if length.isdigit() else 0)
            await self.app(scope, limited, stamped)
        except ServiceError as error:  # there was no permit: refused before any route is looked for
            entry.code = error.code
            await answer(error, scope)(scope, receive, stamped)
        finally:
            if exchange.permit:
                exchange.permit.release()
            entry.close()


def answer(error: ServiceError, scope: MutableMapping[str, Any]) -> JSONResponse:
    """An error as problem+json; clients of the Open Inference Protocol look for a member named `error`."""
    retry = error.kind.retry_after_s
    headers = {} if retry is None else {"Retry-After": str(retry)}
    body = problem(error, scope["eca"].entry.request_id)
    if oip_http.is_oip(scope["path"]):
        body["error"] = str(error)
    return JSONResponse(body, error.kind.http, headers, "application/problem+json")


def create_app(settings: Settings, peers: Peers | None = None, patience_s: float = 0) -> FastAPI:
    """The gateway; it connects to Triton when it starts and keeps asking until Triton is there.

    It listens at once, or where it is given patience only when it is ready, or the patience is at its end.
    """
    core = Core(settings, peers or Peers())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await core.start(patience_s)
        grpc_server = GrpcServer(core)
        await grpc_server.start()
        try:
            yield
        finally:
            await grpc_server.stop()
            await core.close()

    app = FastAPI(title="ECA Serve", version=version("eca-serve"), lifespan=lifespan, redoc_url=None)
    app.state.core = core
    app.include_router(routes.router)
    app.include_router(insight_routes.router)
    app.include_router(page.router)
    app.include_router(oip_http.router)
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host
    openapi.install(app, core.registry, f"http://{host}:{settings.http_port}")

    async def handled(request: Request, error: ServiceError) -> JSONResponse:
        request.scope["eca"].entry.code = error.code
        return answer(error, request.scope)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        detail = f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"
        return await handled(request, ServiceError("bad_parameter", detail))

    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in {404, 405}:
            body = problem(ServiceError("bad_request", NO_ROUTE), request.scope["eca"].entry.request_id)
            body |= {"status": error.status_code, "title": str(error.detail)}
            return JSONResponse(body, error.status_code, error.headers, "application/problem+json")
        return await handled(request, ServiceError("bad_request", str(error.detail)))

    async def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return await handled(request, ServiceError("client_closed", "the caller went away"))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("request %s failed", request.scope["eca"].entry.request_id, exc_info=error)
        return await handled(request, ServiceError("internal", "the service failed; its log has the request's id"))

    app.add_exception_handler(ServiceError, handled)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, plain)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, left)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, failed)
    app.add_middleware(Negotiated)
    app.add_middleware(Wrapped, core=core)
    return app
