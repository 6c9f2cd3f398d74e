"""The ASGI application: routes, what wraps every request, start and end."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from eca_service import metrics
from eca_service.backend import Triton
from eca_service.errors import ServiceError, problem
from eca_service.readiness import Readiness
from eca_service.registry import Registry
from eca_service.routes import State, router
from eca_service.settings import Settings

logger = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NO_ROUTE = "no route has this method and path; /docs lists them"
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Wrapped:
    """Around every request: its id, its size limit, the number in flight, its metrics."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.inflight = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["eca.request_id"] = request_id
        started = time.perf_counter()
        status = 500
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.settings.max_body_bytes:
                raise self._too_large()
            return message

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                if not any(key.lower() == b"server-timing" for key, _ in message["headers"]):
                    spent_ms = 1000 * (time.perf_counter() - started)
                    extra.append((b"server-timing", f"total;dur={spent_ms:.3f}".encode()))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        post = scope["method"] == "POST"
        refused: ServiceError | None = None
        if post and self.inflight >= self.settings.max_inflight:
            metrics.rejected.labels("overloaded").inc()
            refused = ServiceError("overloaded", f"{self.inflight} requests are being answered; try again in a moment")
        elif headers.get(b"content-length", "0").isdigit() and (
            int(headers.get(b"content-length", "0")) > self.settings.max_body_bytes
        ):
            refused = self._too_large()
        self.inflight += 1
        metrics.inflight.set(self.inflight)
        try:
            if refused is not None:
                scope["eca.code"] = refused.code
                await answer(refused, request_id)(scope, receive, stamped)
            else:
                await self.app(scope, limited, stamped)
        finally:
            self.inflight -= 1
            metrics.inflight.set(self.inflight)
            model = scope.get("eca.model", "unmatched")
            metrics.requests.labels("http", model, scope.get("eca.code", str(status))).inc()
            metrics.request_seconds.labels("http", model).observe(time.perf_counter() - started)

    def _too_large(self) -> ServiceError:
        return ServiceError("body_too_large", f"the body has more than {self.settings.max_body_bytes} bytes")


def answer(error: ServiceError, request_id: str) -> JSONResponse:
    """An error as problem+json."""
    retry = error.kind.retry_after_s
    headers = {} if retry is None else {"Retry-After": str(retry)}
    return JSONResponse(problem(error, request_id), error.kind.http, headers, "application/problem+json")


def create_app(settings: Settings) -> FastAPI:
    """The gateway; it connects to Triton when it starts and keeps asking until Triton is there."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry = Registry(settings.repository, settings.default_model)
        triton = Triton(settings.triton_url or f"127.0.0.1:{settings.triton_grpc_port}")
        readiness = Readiness(registry, triton)
        decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        app.state.eca = State(settings, registry, triton, readiness, decoders)
        watch = asyncio.create_task(readiness.watch())
        try:
            yield
        finally:
            app.state.eca.draining = True
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await triton.close()
            decoders.shutdown(cancel_futures=True)

    app = FastAPI(title="ECA Serve", version=version("eca-serve"), lifespan=lifespan, redoc_url=None)
    app.include_router(router)

    async def handled(request: Request, error: ServiceError) -> JSONResponse:
        request.scope["eca.code"] = error.code
        return answer(error, request.scope["eca.request_id"])

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        detail = f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"
        return await handled(request, ServiceError("bad_parameter", detail))

    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in {404, 405}:
            body = problem(ServiceError("bad_request", NO_ROUTE), request.scope["eca.request_id"])
            body |= {"status": error.status_code, "title": str(error.detail)}
            return JSONResponse(body, error.status_code, error.headers, "application/problem+json")
        return await handled(request, ServiceError("bad_request", str(error.detail)))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("request %s failed", request.scope["eca.request_id"], exc_info=error)
        return await handled(request, ServiceError("internal", "the service failed; its log has the request's id"))

    app.add_exception_handler(ServiceError, handled)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, plain)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, failed)
    app.add_middleware(Wrapped, settings=settings)
    return app
