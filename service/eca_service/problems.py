"""Errors as HTTP answers: problem+json (RFC 9457), whatever raised them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eca_service.errors import ServiceError, problem, refusal
from eca_service.oip_http import is_oip

NO_ROUTE = "no route has this method and path"


def answer(error: ServiceError, scope: MutableMapping[str, Any]) -> JSONResponse:
    """An error as problem+json."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = 'Bearer realm="eca-serve"'
    return _answer(problem(error, scope["eca"].entry.request_id), error.kind.http, headers, scope)


def _answer(
    body: dict[str, object], status: int, headers: Mapping[str, str] | None, scope: MutableMapping[str, Any]
) -> JSONResponse:
    """Clients of the Open Inference Protocol look for a member named `error`."""
    if is_oip(scope["path"]):
        body["error"] = f"{body['code']}: {body['detail']}"
    return JSONResponse(body, status, headers, "application/problem+json")


def install(app: FastAPI) -> None:
    """Has the application answer what its routes raise."""

    async def handled(request: Request, error: ServiceError) -> JSONResponse:
        request.scope["eca"].entry.failed(error)
        return answer(error, request.scope)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        detail = f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"
        return await handled(request, ServiceError("bad_parameter", detail))

    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in {404, 405}:
            detail = f"{NO_ROUTE}; /docs lists them" if app.openapi_url else NO_ROUTE
            body = refusal(error.status_code, detail, request.scope["eca"].entry.request_id)
            headers = dict(error.headers or {})
            if "GET" in (allowed := headers.get("Allow", "")):
                headers["Allow"] = ", ".join(sorted({*allowed.split(", "), "HEAD"}))  # see head.py
            return _answer(body, error.status_code, headers, request.scope)
        return await handled(request, ServiceError("bad_request", str(error.detail)))

    async def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return await handled(request, ServiceError("client_closed", "the caller went away"))

    app.add_exception_handler(ServiceError, handled)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, plain)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, left)  # type: ignore[arg-type]
