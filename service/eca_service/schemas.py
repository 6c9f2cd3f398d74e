"""JSON Schemas of every answer, and the errors that each operation may give: what makes the OpenAPI document true."""

from __future__ import annotations

import re
from typing import Any

from eca_service.contract import Contract
from eca_service.errors import CODES

Schema = dict[str, Any]
PROBLEM = "application/problem+json"
JSON = "application/json"
TEXT: Schema = {"type": "string"}
YES: Schema = {"type": "boolean"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
CODE: Schema = {"enum": sorted(CODES)}
# What may go wrong, by what the operation has.
ANYWHERE = ("unauthorized", "rate_limited", "internal")
PARAMETERS = ("bad_parameter",)
MODEL = ("model_not_found", "version_not_found")
BODY = tuple(code for code in CODES if code not in {*ANYWHERE, "client_closed", "model_not_found", "version_not_found"})


def _object(properties: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "required": sorted(properties), "properties": properties | optional}


def _list(items: Schema, **more: int) -> Schema:
    return {"type": "array", "items": items, **more}


def _header(text: str, schema: Schema, required: bool = True) -> Schema:
    return {"description": text, "schema": schema, "required": required}


def _component(name: str, kind: str = "schemas") -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> Schema:
    return {name: _component(name, "headers") for name in names}


def _tensor(**parts: Schema) -> Schema:
    shape = _list(WHOLE)
    return _object({"name": TEXT, "datatype": TEXT, "shape": shape}, **parts)


BOX = _object(dict.fromkeys(("left", "top", "right", "bottom"), NUMBER)) | {
    "description": "what the network saw, in pixels: `crop` of the file's, `upright.crop` of the image as it is shown"
}
MILLISECONDS: Schema = {
    "type": "object",
    "additionalProperties": NUMBER,
    "required": ["total"],
    "description": "milliseconds by stage: `decode`, `queue`, `infer`; `total` is of the whole request",
}
WARNINGS = _list(TEXT) | {"description": "what was done to the image that its sender may not expect"}
SCORE: Schema = {"type": "number", "minimum": 0, "maximum": 1, "description": "the probability"}
PREDICTION = _object({"index": WHOLE, "label": TEXT, "score": SCORE})
FAILED = _object({"error": _object({"code": CODE, "detail": TEXT})})
SIZES = _object({"width": WHOLE, "height": WHOLE, "orientation": {"type": "integer", "minimum": 1, "maximum": 8}})
UPRIGHT = _object({"width": WHOLE, "height": WHOLE, "crop": BOX})
ANSWERER = {"model": TEXT, "version": WHOLE}
COMPONENTS: dict[str, Schema] = {
    "Problem": _object(
        {
            "type": TEXT,
            "title": TEXT,
            "status": WHOLE,
            "detail": TEXT,
            "advice": TEXT,
            "code": CODE,
            "request_id": TEXT,
        },
        error=TEXT | {"description": "the same, for clients of the Open Inference Protocol"},
    ),
    "Classified": _object(
        ANSWERER
        | {
            "request_id": TEXT,
            "results": _list(
                {"anyOf": [_object({"predictions": _list(PREDICTION), "warnings": WARNINGS}), FAILED]}, minItems=1
            ),
            "timing_ms": MILLISECONDS,
        }
    ),
    "Explained": _object(
        ANSWERER
        | {
            "request_id": TEXT,
            "class": _object({"index": WHOLE, "label": TEXT, "score": SCORE, "logit": NUMBER, "bias": NUMBER}),
            "map": _list(_list(NUMBER)) | {"description": "rows of values, whose sum is the logit without the bias"},
            "image": SIZES,
            "crop": BOX,
            "upright": UPRIGHT,
            "predictions": _list(PREDICTION),
            "warnings": WARNINGS,
            "timing_ms": MILLISECONDS,
        },
        gates=_list(_object({"block": TEXT, "values": _list(NUMBER)})),
    ),
    "Compared": _object(
        {
            "request_id": TEXT,
            "image": SIZES,
            "results": _list(
                {
                    "allOf": [
                        _object(ANSWERER | {"architecture": TEXT, "attention": TEXT}),
                        {
                            "anyOf": [
                                _object(
                                    {
                                        "predictions": _list(PREDICTION),
                                        "crop": BOX,
                                        "upright": UPRIGHT,
                                        "timing_ms": MILLISECONDS,
                                    }
                                ),
                                FAILED,
                            ]
                        },
                    ]
                },
                minItems=1,
            ),
            "warnings": WARNINGS,
            "timing_ms": MILLISECONDS,
        }
    ),
    "Models": _object({"models": _list(_component("Contract")), "default": {"type": ["string", "null"]}}),
    "Live": _object({"live": YES}),
    "Ready": _object({"ready": YES}, reasons={"type": "object", "additionalProperties": TEXT}, name=TEXT),
    "Server": _object({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
    "ModelMetadata": _object(
        {
            "name": TEXT,
            "versions": _list(TEXT),
            "platform": TEXT,
            "inputs": _list(_tensor()),
            "outputs": _list(_tensor()),
        }
    ),
    "ModelConfiguration": _object({"name": TEXT, "platform": TEXT, "input": _list({}), "output": _list({})}),
    "ModelStatistics": _object({"model_stats": _list({"type": "object"})}),
    "Inferred": _object(
        {"model_name": TEXT, "model_version": TEXT, "outputs": _list(_tensor(data=_list({}), parameters={}))},
        id=TEXT,
        parameters=_object({}, warnings=TEXT),
    ),
}
COMPONENTS["Refused"] = _object(
    {"type": TEXT, "title": TEXT, "status": WHOLE, "detail": TEXT, "code": TEXT, "request_id": TEXT}, error=TEXT
) | {"description": "a `Problem`, or what HTTP itself refuses, by the status's number as `code`: 404, 405, 408, 431"}
STAMPED = ("X-Request-Id", "Server-Timing")  # on every answer
LATER = "Retry-After"
EXPLAINS = ("X-Model-Version", "X-Class-Index", "X-Class-Label", "X-Class-Score")  # what is told beside the picture
HEADER_LENGTH = "Inference-Header-Content-Length"
HEADERS = {
    "X-Request-Id": _header("finds the request in the service's log; the caller's own, if it sent one", TEXT),
    "Server-Timing": _header("milliseconds by stage", TEXT),
    LATER: _header("seconds until the same may be sent again", WHOLE),
    "X-Model-Version": _header("with a PNG: the version that answered", TEXT, required=False),
    "X-Class-Index": _header("with a PNG: the class that it explains", TEXT, required=False),
    "X-Class-Label": _header("with a PNG: the class's label, percent-encoded", TEXT, required=False),
    "X-Class-Score": _header("with a PNG: the class's probability", TEXT, required=False),
    HEADER_LENGTH: _header("with binary tensors: the bytes of JSON before them", WHOLE, required=False),
}
ANSWERED_TO_ALL = re.compile(r"^/(livez|readyz|v2/health/\w+)$")  # no key is asked
# By the end of an operation's path, the longest that fits.
ANSWERS = {
    "/classify": "Classified",
    "/explain": "Explained",
    "/compare": "Compared",
    "/v1/models": "Models",
    "/v1/models/{model}": "Contract",
    "/livez": "Live",
    "/live": "Live",
    "ready": "Ready",
    "/readyz": "Ready",
    "/v2": "Server",
    "/v2/models/{model}": "ModelMetadata",
    "/v2/models/{model}/versions/{version}": "ModelMetadata",
    "/config": "ModelConfiguration",
    "/stats": "ModelStatistics",
    "/infer": "Inferred",
}


def describe(document: Schema) -> None:
    """Puts the schema of each operation's answer and its errors into an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not what is answered
        schemas.pop(name, None)
    contract = Contract.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas |= {**contract.pop("$defs"), "Contract": contract, **COMPONENTS}
    document["components"]["headers"] = HEADERS
    contract["properties"].pop("head", None)
    contract["required"] = [name for name in contract.get("required", ()) if name != "head"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            answers = operation["responses"]
            answers.pop("422", None)
            codes = [] if ANSWERED_TO_ALL.search(path) else [*ANYWHERE]
            codes += PARAMETERS if operation.get("parameters") else ()
            codes += BODY if method == "post" else ()
            codes += MODEL if "{model}" in path or method == "post" else ()
            answers |= _errors(codes)
            fitting = [end for end in ANSWERS if path.endswith(end)]
            if fitting:
                component = _component(ANSWERS[max(fitting, key=len)])
                answers["200"].setdefault("content", {}).setdefault(JSON, {})["schema"] = component
                if component == _component("Ready"):
                    answers["503"] = answers["200"] | {"description": "Not ready"}
            if path.endswith("/infer"):
                answers["200"]["content"]["application/octet-stream"] = {"schema": TEXT | {"format": "binary"}}
                answers["200"]["headers"] = _headers(HEADER_LENGTH)
            if path.endswith("/explain"):
                answers["200"]["headers"] = _headers(*EXPLAINS)
            if path == "/metrics":
                answers["200"]["content"] = {"application/openmetrics-text": {"schema": TEXT}}
            for status, answer in answers.items():
                later = (LATER,) if status in {"429", "503"} else ()
                answer["headers"] = answer.get("headers", {}) | _headers(*STAMPED, *later)


def _errors(codes: list[str]) -> dict[str, Schema]:
    """The answers of errors by status."""
    found: dict[str, Schema] = {}
    for code in CODES:
        if code in codes:
            status = str(CODES[code].http)
            text = f"`{code}`: {CODES[code].title.lower()}"
            content = {PROBLEM: {"schema": _component("Problem")}}
            found.setdefault(status, {"description": text, "content": content})
            if text not in found[status]["description"]:
                found[status]["description"] += f"; {text}"
    return found
