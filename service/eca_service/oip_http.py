"""The Open Inference Protocol v2 over HTTP: JSON, and the binary tensor data extension."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from eca_service import oip
from eca_service.bodies import Images, from_base64, parsed, read_body
from eca_service.contract import INPUT, Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.labels import top_k_of
from eca_service.numerals import whole
from eca_service.openapi import takes_tensor
from eca_service.query import require_no_options
from eca_service.routes import answer_to, core_of
from eca_service.schemas import HEADER_LENGTH

router = APIRouter(prefix="/v2", dependencies=[Depends(require_no_options)])
Handler = Callable[[Request, str, str], Coroutine[Any, Any, Response]]


def is_oip(path: str) -> bool:
    """Whether a path belongs to the protocol."""
    return path == "/v2" or path.startswith("/v2/")


def _below_model(method: str, end: str, described: dict[str, Any] | None = None) -> Callable[[Handler], Handler]:
    """Has a handler answer below a model and below each of its versions; without one it is given an empty text."""

    def register(handler: Handler) -> Handler:
        async def without_version(request: Request, model: str) -> Response:
            return await handler(request, model, "")

        without_version.__name__, without_version.__doc__ = handler.__name__, handler.__doc__
        for version, endpoint in (("", without_version), ("/versions/{version}", handler)):
            path = f"/models/{{model}}{version}{end}"
            router.add_api_route(path, endpoint, methods=[method], openapi_extra=deepcopy(described))
        return handler

    return register


@router.get("")
@router.get("/", include_in_schema=False)  # as the protocol's OpenAPI document has it
async def server() -> Response:
    """The service's name, version and extensions."""
    return JSONResponse(oip.server_metadata())


@router.get("/health/live")
async def live() -> Response:
    """The process is alive."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Every model gave its golden answers."""
    return _readiness(core_of(request).ready)


@router.get("/models/stats")
async def all_statistics(request: Request) -> Response:
    """What this process has counted of all models."""
    return JSONResponse(oip.as_json(oip.statistics(core_of(request).totals())))


@_below_model("GET", "")
async def metadata(request: Request, model: str, version: str) -> Response:
    """A model's tensors."""
    return JSONResponse(oip.model_metadata(_contract(core_of(request), model, version)))


@_below_model("GET", "/ready")
async def model_ready(request: Request, model: str, version: str) -> Response:
    """The model gave its golden answers."""
    core = core_of(request)
    name = _contract(core, model, version).name
    return _readiness(not core.leaving and core.readiness.is_ready(name), name)


@_below_model("GET", "/config")
async def config(request: Request, model: str, version: str) -> Response:
    """A model's configuration, which load generators ask for."""
    return JSONResponse(oip.as_json(oip.model_config(_contract(core_of(request), model, version))))


@_below_model("GET", "/stats")
async def statistics(request: Request, model: str, version: str) -> Response:
    """What this process has counted."""
    core = core_of(request)
    return JSONResponse(oip.as_json(oip.statistics(core.totals(_contract(core, model, version)))))


@_below_model("POST", "/infer", takes_tensor())
async def infer(request: Request, model: str, version: str) -> Response:
    """Classifies the encoded images of the input `image`."""
    core = core_of(request)
    asked = _Asked([], 0, "", [], set())

    async def read(contract: Contract) -> tuple[Images, int]:
        nonlocal asked
        body = await read_body(request, core)
        length = request.headers.get(HEADER_LENGTH)
        asked = await core.decoders.aside(_parse, body, length, contract, core.most_images)
        return asked.images, asked.top_k

    answer = await answer_to(request, model, oip.require_version(version), read)
    outputs = oip.tensors(answer, asked.top_k, asked.outputs)
    head: dict[str, Any] = {"model_name": model, "model_version": str(answer.contract.version)}
    if asked.id:
        head["id"] = asked.id
    if warnings := oip.warnings(answer):
        head["parameters"] = {"warnings": warnings}
    described, tail = [], b""
    for tensor in outputs:
        row: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in asked.binary:
            raw = tensor.raw()
            row["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            row["data"] = tensor.flat()
        described.append(row)
    text = json.dumps(head | {"outputs": described}, separators=(",", ":")).encode()
    headers = {"Server-Timing": answer.server_timing()}
    if not tail:
        return Response(text, 200, headers, "application/json")
    headers[HEADER_LENGTH] = str(len(text))
    return Response(text + tail, 200, headers, "application/octet-stream")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an inference request says; `binary` are the outputs wanted as bytes."""

    images: Images
    top_k: int
    id: str
    outputs: list[str]
    binary: set[str]


def _parse(body: bytes, header_length: str | None, contract: Contract, most_images: int) -> _Asked:
    """Raises bad_request or bad_parameter where the body is not an inference request."""
    length = len(body)
    if header_length is not None:
        told = whole(header_length)
        if told is None or told > length:
            raise ServiceError(
                "bad_request", f"Inference-Header-Content-Length is {header_length!r}, the body has {length} bytes"
            )
        length = told
    head = parsed(body[:length])
    inputs = _list(_object(head, "the request"), "inputs")
    if len(inputs) != 1:
        raise ServiceError("bad_request", f"the request has {len(inputs)} inputs, the model has one: {INPUT}")
    given = _object(inputs[0], "an input")
    shape = given.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise ServiceError("bad_request", f"the shape of {INPUT} must be a list of whole numbers")
    count = oip.require_input(_text(given, "name"), _text(given, "datatype"), shape, most_images)
    oip.require_plain(INPUT, _parameters(given))
    size = _parameters(given).get("binary_data_size")
    if size is None:
        images = _from_json(given.get("data"), count)
    elif size != len(body) - length:
        quoted = str(size)[: oip.TOLD]
        raise ServiceError("bad_request", f"binary_data_size is {quoted}, {len(body) - length} bytes follow the header")
    else:
        images = oip.unpack(memoryview(body)[length:], count)
    parameters = _parameters(head)
    oip.require_parameters(parameters)
    wanted = [_object(output, "an output") for output in _list(head, "outputs")]
    names = oip.require_outputs([_text(output, "name") for output in wanted])
    for output in wanted:
        oip.require_plain(_text(output, "name"), _parameters(output))
    everything = parameters.get("binary_data_output") is True
    said = {_text(output, "name"): _parameters(output).get("binary_data", everything) for output in wanted}
    binary = {name for name in names if said.get(name, everything) is True}
    top_k = top_k_of(parameters.get("top_k"), contract)
    return _Asked(images, top_k, _text(head, "id"), names, binary)


def _from_json(data: Any, count: int) -> Images:
    """Base64 texts: JSON has no other way to hold bytes."""
    texts = data if isinstance(data, list) else None
    if texts and all(isinstance(row, list) and len(row) == 1 for row in texts):
        texts = [row[0] for row in texts]
    if texts is None or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ServiceError("bad_request", f"the data of {INPUT} must be a list of {count} base64 strings")
    return [from_base64(text) for text in texts]


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ServiceError("bad_request", f"{what} must be a JSON object")
    return value


def _list(holder: dict[str, Any], key: str) -> list[Any]:
    value = [] if holder.get(key) is None else holder[key]
    if not isinstance(value, list):
        raise ServiceError("bad_request", f"{key} must be a list")
    return value


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    found = _object({} if holder.get("parameters") is None else holder["parameters"], "parameters")
    if any(isinstance(value, list | dict) for value in found.values()):
        raise ServiceError("bad_request", "a parameter must be a string, a number, true or false")
    return found


def _text(holder: dict[str, Any], key: str) -> str:
    """A text or number as a text; empty for all else, which is neither a name nor an id."""
    value = holder.get(key)
    return str(value) if isinstance(value, str | int | float) else ""


def _contract(core: Core, model: str, version: str) -> Contract:
    return core.registry.get(model, oip.require_version(version)).contract


def _readiness(yes: bool, model: str = "") -> Response:
    named = {"name": model} if model else {}
    return JSONResponse({**named, "ready": yes}, 200 if yes else 503, {} if yes else {"Retry-After": "1"})
