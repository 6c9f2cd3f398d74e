"""The HTTP routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from eca_service import metrics
from eca_service.answers import Answer, Result
from eca_service.bodies import Images, read_images
from eca_service.cancellation import in_time
from eca_service.contract import Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.labels import top_k_of
from eca_service.openapi import CLASSIFIED, takes_images
from eca_service.query import require_clear

router = APIRouter(dependencies=[Depends(require_clear)])
scraped = APIRouter()
SCRAPED = "/metrics"
TopK = Annotated[int | None, Query(description="how many of the best classes to return; default: 5, or all if fewer")]
Reader = Callable[[Contract], Awaitable[tuple[Images, int]]]


def core_of(request: Request) -> Core:
    """The application's core."""
    core: Core = request.app.state.core
    return core


@router.post("/v1/classify", openapi_extra=takes_images(CLASSIFIED, "/v1/classify?top_k=3"))
async def classify_default(request: Request, top_k: TopK = None) -> Response:
    """Classifies with the default model: raw image bytes, multipart files, or JSON with base64."""
    return await classify(request, None, None, top_k)


@router.post(
    "/v1/models/{model}/classify", openapi_extra=takes_images(CLASSIFIED, "/v1/models/{model}/classify?top_k=3")
)
async def classify_model(request: Request, model: str, top_k: TopK = None) -> Response:
    """Classifies with one model."""
    return await classify(request, model, None, top_k)


@router.post(
    "/v1/models/{model}/versions/{version}/classify",
    openapi_extra=takes_images(CLASSIFIED, "/v1/models/{model}/versions/{version}/classify"),
)
async def classify_version(request: Request, model: str, version: int, top_k: TopK = None) -> Response:
    """Classifies with one version of a model."""
    return await classify(request, model, version, top_k)


# By whether they name a model and a version; for `Direct`.
CLASSIFY = dict(zip(((False, False), (True, False), (True, True)), router.routes, strict=True))


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """All contracts, without the head's weights, and the name of the default model."""
    registry = core_of(request).registry
    listed = b",".join(model.listed for model in registry.models.values())
    default = bytes(JSONResponse(registry.default).body)
    return Response(b'{"models":[%b],"default":%b}' % (listed, default), media_type=JSONResponse.media_type)


@router.get("/v1/models/{model}")
async def one_model(request: Request, model: str) -> Response:
    """One contract, without the head's weights."""
    return Response(core_of(request).registry.get(model).listed, media_type=JSONResponse.media_type)


@router.get("/livez")
async def livez() -> Response:
    """The process is alive."""
    return JSONResponse({"live": True})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Every model gave its golden answers."""
    core = core_of(request)
    ready = core.ready
    reasons = dict(core.readiness.reasons)
    if not core.registry.models:
        reasons["repository"] = "it holds no model; `eca-build compile` makes one"
    for index in core.peers.unready():
        reasons[f"worker {index}"] = "it has not got the golden answers"
    if core.leaving:
        reasons["service"] = "it is shutting down"
    headers = {} if ready else {"Retry-After": "1"}
    return JSONResponse({"ready": ready, "reasons": reasons}, 200 if ready else 503, headers)


@scraped.get(SCRAPED)
async def metrics_route() -> Response:
    """OpenMetrics."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def answer_to(request: Request, name: str | None, version: int | None, read: Reader) -> Answer:
    """The core's answer to the images and the top_k that `read` gives, in time, for as long as the caller is there."""
    core, exchange = core_of(request), request.scope["eca"]
    deadline, received_by = deadlines(request, core)
    model = core.registry.get(name, version)
    exchange.entry.model = model.contract.name
    core.require(model, deadline)

    async def received() -> tuple[Images, int]:
        return await read(model.contract)

    with core.registry.lease(model):
        images, top_k = await in_time(received(), min(deadline, received_by))
        work = core.classify(model, images, top_k, deadline, exchange.permit, version)
        answer = await in_time(work, deadline, partial(gone, exchange.receive))
    if len(answer.results) == 1 and answer.results[0].error is not None:
        raise answer.results[0].error.anew()
    return answer


def deadlines(request: Request, core: Core) -> tuple[float, float]:
    """When the answer is due, and when its body must have come, by the event loop's clock. Raises bad_parameter."""
    now = asyncio.get_running_loop().time()
    return now + deadline_ms(request, core) / 1000, now + core.settings.body_timeout_ms / 1000


def deadline_ms(request: Request, core: Core) -> float:
    """The caller's X-Request-Timeout-Ms, or the service's own; bad_parameter where it is no number of that range."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return core.settings.deadline_ms
    try:
        value = float(given)
    except ValueError:
        value = -1
    if not 0 < value < 1e9:
        raise ServiceError("bad_parameter", f"X-Request-Timeout-Ms is {given!r}, not a number above 0 and below 1e9")
    return value


async def gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    """Returns once the caller has left; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def classify(request: Request, name: str | None, version: int | None, top_k: int | None) -> Response:
    """The answer to the images in a request's body; without a name the default model's. Raises ServiceError.

    Most come here by `Direct`, not by the routes above. Of a caller that left it raises Starlette's ClientDisconnect.
    """
    core = core_of(request)

    async def read(contract: Contract) -> tuple[Images, int]:
        return await read_images(request, core), top_k_of(top_k, contract)

    answer = await answer_to(request, name, version, read)
    body = {
        "model": answer.contract.name,
        "version": answer.contract.version,
        "request_id": request.scope["eca"].entry.request_id,
        "results": [_row(result) for result in answer.results],
        "timing_ms": answer.milliseconds,
    }
    return JSONResponse(body, headers={"Server-Timing": answer.server_timing()})


def _row(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"error": {"code": result.error.code, "detail": result.error.detail}}
    predictions = [{"index": p.index, "label": p.label, "score": p.score} for p in result.predictions]
    return {"predictions": predictions, "warnings": list(result.warnings)}
