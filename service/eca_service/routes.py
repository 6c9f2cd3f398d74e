"""The HTTP routes."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from eca_service import metrics
from eca_service.backend import Triton
from eca_service.errors import ServiceError
from eca_service.pipeline import Result, Timing, before, classify
from eca_service.readiness import Readiness
from eca_service.registry import Registry
from eca_service.settings import Settings

router = APIRouter()
TopK = Annotated[int, Query(ge=1, description="how many classes to answer, at most as many as there are")]


@dataclass
class State:
    """What the routes work with."""

    settings: Settings
    registry: Registry
    triton: Triton
    readiness: Readiness
    decoders: ThreadPoolExecutor
    draining: bool = False


def state_of(request: Request) -> State:
    """The application's state."""
    state: State = request.app.state.eca
    return state


@router.post("/v1/classify")
async def classify_default(request: Request, top_k: TopK = 5) -> Response:
    """Classifies with the default model: raw image bytes, multipart files, or JSON with base64."""
    return await _classify(request, None, None, top_k)


@router.post("/v1/models/{model}/classify")
async def classify_model(request: Request, model: str, top_k: TopK = 5) -> Response:
    """Classifies with one model."""
    return await _classify(request, model, None, top_k)


@router.post("/v1/models/{model}/versions/{version}/classify")
async def classify_version(request: Request, model: str, version: int, top_k: TopK = 5) -> Response:
    """Classifies with one version of a model."""
    return await _classify(request, model, version, top_k)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """All contracts, without the head's weights."""
    found = state_of(request).registry.models.values()
    return JSONResponse({"models": [model.contract.public() for model in found]})


@router.get("/v1/models/{model}")
async def one_model(request: Request, model: str) -> Response:
    """One contract, without the head's weights."""
    return JSONResponse(state_of(request).registry.get(model).contract.public())


@router.get("/livez")
async def livez() -> Response:
    """The process is alive."""
    return JSONResponse({"live": True})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Every model gave its golden answers."""
    state = state_of(request)
    ready = state.readiness.ready and not state.draining
    reasons = dict(state.readiness.reasons)
    if not state.registry.models:
        reasons["repository"] = f"no model in {state.settings.repository}; `eca-build compile` makes one"
    headers = {} if ready else {"Retry-After": "1"}
    return JSONResponse({"ready": ready, "reasons": reasons}, 200 if ready else 503, headers)


@router.get("/metrics")
async def metrics_route() -> Response:
    """OpenMetrics."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def _classify(request: Request, name: str | None, version: int | None, top_k: int) -> Response:
    state = state_of(request)
    timing = Timing()
    model = state.registry.get(name, version)
    contract = model.contract
    request.scope["eca.model"] = contract.name
    if state.draining:
        raise ServiceError("draining", "the service is shutting down")
    if top_k > contract.classes:
        raise ServiceError("bad_parameter", f"top_k is {top_k}, {contract.name} has {contract.classes} classes")
    state.readiness.require(contract.name)
    deadline = asyncio.get_running_loop().time() + deadline_ms(request, state.settings) / 1000
    reading = read_images(request, state.settings.max_images)
    images = await before(deadline, reading, "the request's body was not received")
    try:
        results = await classify(
            images,
            contract,
            state.triton,
            state.decoders,
            top_k=top_k,
            max_pixels=state.settings.max_pixels,
            deadline=deadline,
            timing=timing,
        )
    except ServiceError as error:
        if error.kind.http >= 500:
            state.readiness.suspect()
        raise
    if len(results) == 1 and results[0].error is not None:
        raise results[0].error
    spent = timing.milliseconds()
    body = {
        "model": contract.name,
        "version": contract.version,
        "request_id": request.scope["eca.request_id"],
        "results": [_row(result) for result in results],
        "timing_ms": spent,
    }
    header = ", ".join(f"{stage};dur={value}" for stage, value in spent.items())
    return JSONResponse(body, headers={"Server-Timing": header})


def _row(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"error": {"code": result.error.code, "detail": result.error.detail}}
    return {"predictions": [asdict(p) for p in result.predictions], "warnings": list(result.warnings)}


def deadline_ms(request: Request, settings: Settings) -> float:
    """The caller's X-Request-Timeout-Ms, or the service's own; bad_parameter where it is no positive number."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return settings.deadline_ms
    try:
        value = float(given)
    except ValueError:
        value = -1
    if not 0 < value < 1e9:
        raise ServiceError("bad_parameter", f"X-Request-Timeout-Ms is {given!r}, not a positive number")
    return value


async def read_images(request: Request, most: int) -> Sequence[bytes | ServiceError]:
    """The encoded images of a request, in their order; ServiceError where the body holds none or too many."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    images: Sequence[bytes | ServiceError]
    if kind == "multipart/form-data":
        images = await _multipart(request, most)
    elif kind == "application/json":
        images = _base64(await _json(request))
    else:
        body = await request.body()
        images = [body] if body else []
    if not images:
        raise ServiceError(
            "bad_request", "the request holds no image; send its bytes as the body, or as a file of a form"
        )
    if len(images) > most:
        raise ServiceError("bad_request", f"the request holds {len(images)} images, at most {most} are taken")
    return images


async def _multipart(request: Request, most: int) -> list[bytes | ServiceError]:
    # Starlette turns a malformed form into its own HTTPException, which the application answers as bad_request.
    async with request.form(max_files=most) as form:
        return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise ServiceError("bad_request", "the body is not valid JSON") from None


def _base64(body: Any) -> list[bytes | ServiceError]:
    entries = body.get("images") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise ServiceError("bad_request", 'the JSON body must be {"images": [{"b64": "..."}]}')
    images: list[bytes | ServiceError] = []
    for entry in entries:
        text = entry.get("b64") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise ServiceError("bad_request", 'each entry of "images" must be {"b64": "..."}')
        try:
            images.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            images.append(ServiceError("bad_request", "the text is not base64"))
    return images
