"""The HTTP routes that look into models: class activation maps, and several models on one image."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from eca_service.answers import Prediction
from eca_service.bodies import read_images
from eca_service.cancellation import in_time
from eca_service.comparison import Compared, compare, family, require_any
from eca_service.errors import ServiceError
from eca_service.explanation import Explanation, explain
from eca_service.geometry import Box, Size, as_stored
from eca_service.labels import top_k_of
from eca_service.negotiation import weights
from eca_service.openapi import BINARY, COMPARED, EXPLAINED, takes_images
from eca_service.overlay import overlay_png
from eca_service.query import require_clear
from eca_service.registry import Model
from eca_service.routes import TopK, core_of, deadlines, gone
from eca_service.schemas import EXPLAINS

router = APIRouter(dependencies=[Depends(require_clear)])
T = TypeVar("T")
PNG = "image/png"


@router.post(
    "/v1/models/{model}/explain",
    openapi_extra=takes_images(EXPLAINED, "/v1/models/{model}/explain' -o 'map.png"),
    responses={200: {"content": {PNG: BINARY}}},
)
async def explain_route(
    request: Request,
    model: str,
    wanted: Annotated[
        str | None, Query(alias="class", description="index or label of the class to explain; default: the best class")
    ] = None,
    top_k: TopK = None,
    gates: Annotated[bool, Query(description="JSON: include the attention's gates, if the model exposes them")] = False,
    opacity: Annotated[float, Query(ge=0, le=1, description="PNG: opacity of the map where it is strongest")] = 0.6,
    side: Annotated[int, Query(ge=32, le=4096, description="PNG: most pixels of the longer side")] = 1024,
) -> Response:
    """The exact class activation map of one image: a PNG, or JSON where `Accept: application/json` asks for it."""
    core = core_of(request)
    chosen = core.registry.get(model)
    as_json = prefers_json(request.headers.get("accept", ""))

    async def work(image: bytes, deadline: float) -> tuple[Explanation, bytes]:
        found = await explain(
            *(core, chosen, image, wanted, deadline, request.scope["eca"].permit),
            top_k=top_k_of(top_k, chosen.contract),
            gates=gates,
            preview_px=0 if as_json else side,
        )
        if found.decoded.preview is None:
            return found, b""
        crop = found.crop.shrunk(*found.decoded.size)
        contract, explained = found.answer.contract, found.explained
        caption = f"{explained.label} ({explained.score:.1%}), {contract.name} version {contract.version}"
        drawn = (found.decoded.preview, found.map.values, crop, opacity, found.decoded.orientation, caption)
        png = await core.decoders.aside(overlay_png, *drawn)
        total_s = request.scope["eca"].entry.answered()  # to draw may take longer than all before it
        return replace(found, answer=replace(found.answer, total_s=total_s)), png

    found, png = await _one_image(request, [chosen], lambda deadline: core.require(chosen, deadline), work)
    headers = {"Server-Timing": found.answer.server_timing()}
    if as_json:
        return JSONResponse(_explained(found, request.scope["eca"].entry.request_id), headers=headers)
    explained = found.explained
    told = (found.answer.contract.version, explained.index, quote(explained.label), f"{explained.score:.6f}")
    headers |= {name: str(value) for name, value in zip(EXPLAINS, told, strict=True)}
    return Response(png, media_type=PNG, headers=headers)


@router.post("/v1/compare", openapi_extra=takes_images(COMPARED, "/v1/compare"))
async def compare_route(
    request: Request,
    models: Annotated[
        list[str] | None,
        Query(description="names, repeated or separated by commas; default: the default model's family"),
    ] = None,
    top_k: TopK = None,
) -> Response:
    """Each model's predictions for one image.

    Without `models`, the default model and those that differ from it in their attention alone: plain, SE, ECA.
    """
    core = core_of(request)
    if models is None:
        chosen = family(core.registry)
    else:
        names = dict.fromkeys(name.strip() for name in ",".join(models).split(",") if name.strip())
        if not names:
            raise ServiceError("bad_parameter", "models names no model; separate names by commas")
        chosen = [core.registry.get(name) for name in names]
    counts = [top_k_of(top_k, model.contract) for model in chosen]

    async def work(image: bytes, deadline: float) -> Any:
        return await compare(core, chosen, image, counts, deadline, request.scope["eca"].permit)

    found = await _one_image(request, chosen, lambda deadline: require_any(core, chosen, deadline), work)
    body = {
        "request_id": request.scope["eca"].entry.request_id,
        "image": _image(found.size, found.orientation),
        "results": [_compared(entry, found.size, found.orientation) for entry in found.entries],
        "warnings": list(found.warnings),
        "timing_ms": {"total": round(1000 * found.total_s, 3)},
    }
    return JSONResponse(body)


def prefers_json(accept: str) -> bool:
    """Whether an Accept header (RFC 9110) asks for JSON rather than for a PNG.

    Of equal weights the one counts that is named more closely: axios sends `application/json, text/plain, */*`.
    """
    given = weights(accept)

    def rank(*names: str) -> tuple[float, int]:
        """Weight and closeness by the closest of the names that is given."""
        return next(((given[name], -distance) for distance, name in enumerate(names) if name in given), (0.0, 0))

    return rank("application/json", "application/*", "*/*") > rank(PNG, "image/*", "*/*")


async def _one_image(
    request: Request,
    models: Sequence[Model],
    require: Callable[[float], None],
    work: Callable[[bytes, float], Coroutine[Any, Any, T]],
) -> T:
    """What `work` makes of the request's one image, in time, for as long as the caller is there."""
    core, exchange = core_of(request), request.scope["eca"]
    deadline, received_by = deadlines(request, core)
    exchange.entry.model = models[0].contract.name
    require(deadline)
    with ExitStack() as held:
        for model in models:
            held.enter_context(core.registry.lease(model))
        images = await in_time(read_images(request, core), min(deadline, received_by))
        if len(images) != 1:
            raise ServiceError("bad_request", f"the request holds {len(images)} images; this route takes one")
        if isinstance(images[0], ServiceError):
            raise images[0].anew()
        return await in_time(work(images[0], deadline), deadline, partial(gone, exchange.receive))


def _explained(found: Explanation, request_id: str) -> dict[str, Any]:
    contract, decoded = found.answer.contract, found.decoded
    body = {
        "model": contract.name,
        "version": contract.version,
        "request_id": request_id,
        "class": _prediction(found.explained) | {"logit": found.map.logit, "bias": found.map.bias},
        "map": found.map.values.tolist(),
        "image": _image(decoded.size, decoded.orientation),
        **_crop(found.crop, decoded.size, decoded.orientation),
        "predictions": [_prediction(one) for one in found.result.predictions],
        "warnings": list(decoded.warnings),
        "timing_ms": found.answer.milliseconds,
    }
    if found.gates:
        body["gates"] = [
            {"block": gates.block, "values": [round(value, 4) for value in gates.values.tolist()]}
            for gates in found.gates
        ]
    return body


def _compared(entry: Compared, size: Size, orientation: int) -> dict[str, Any]:
    contract = entry.contract
    row: dict[str, Any] = {
        "model": contract.name,
        "version": contract.version,
        "architecture": contract.architecture,
        "attention": contract.attention,
    }
    if entry.answer is None or entry.crop is None:
        assert entry.error is not None
        return row | {"error": {"code": entry.error.code, "detail": entry.error.detail}}
    return row | {
        **_crop(entry.crop, size, orientation),
        "predictions": [_prediction(one) for one in entry.answer.results[0].predictions],
        "timing_ms": entry.answer.milliseconds,
    }


def _prediction(one: Prediction) -> dict[str, Any]:
    return {"index": one.index, "label": one.label, "score": one.score}


def _image(size: Size, orientation: int) -> dict[str, int]:
    """The image's size in the file's own pixels."""
    width, height = size if orientation < 5 else size[::-1]
    return {"width": width, "height": height, "orientation": orientation}


def _crop(crop: Box, size: Size, orientation: int) -> dict[str, Any]:
    """What the network saw: in the file's own pixels, and in those of the image as it is shown."""
    upright = {"width": size[0], "height": size[1], "crop": _box(crop)}
    return {"crop": _box(as_stored(crop, size, orientation)), "upright": upright}


def _box(box: Box) -> dict[str, float]:
    edges = {"left": box.left, "top": box.top, "right": box.right, "bottom": box.bottom}
    return {edge: round(value, 3) for edge, value in edges.items()}
