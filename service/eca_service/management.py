"""Which version a model is served in, changed over HTTP; there only where a management token is set."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from eca_service import disk
from eca_service.bodies import parsed, read_body
from eca_service.errors import ServiceError
from eca_service.registry import pin, roll_back
from eca_service.routes import core_of

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/models/{model}", include_in_schema=False)


@router.api_route("/pin", methods=["PUT", "DELETE"])  # one route, for Allow to name both
async def change_pin(request: Request, model: str) -> Response:
    """PUT has the model served in the version that the body {"version": n} names, without a body in the one before;
    DELETE in its newest again.
    """
    _require_token(request)
    if request.method == "DELETE":
        return await _change(request, model, None, back=False)
    version = None
    if text := await read_body(request, core_of(request)):
        body = parsed(text)
        version = body.get("version") if isinstance(body, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ServiceError("bad_request", 'the body must be {"version": n}, or there must be none')
    return await _change(request, model, version, back=version is None)


def _require_token(request: Request) -> None:
    exchange = request.scope["eca"]
    core_of(request).access.require_management(exchange.headers.get(b"authorization"))
    exchange.entry.caller = "management"


async def _change(request: Request, model: str, version: int | None, back: bool) -> Response:
    core = core_of(request)
    served = core.registry.get(model).contract  # of those served: a path never names anything else
    name = served.name
    request.scope["eca"].entry.model = name
    repository = core.settings.repository
    try:
        if back:
            version = await disk.call(roll_back, repository, name, served.version)
        else:
            await disk.call(pin, repository, name, version)
    except OSError as error:
        raise ServiceError(
            "bad_request",  # no failure that anybody should be woken for
            f"{repository} cannot be written here ({error.strerror}); run `eca-serve rollback` where it is writable",
        ) from None
    logger.info("%s is to be served in %s", name, f"version {version}" if version else "its newest version")
    return JSONResponse({"model": name, "pinned": version})
