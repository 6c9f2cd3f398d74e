"""What the OpenAPI document says of bodies and answers; its examples work as they stand, against the models served."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from eca_service import schemas
from eca_service.access import Access
from eca_service.contract import INPUT
from eca_service.errors import ServiceError, problem
from eca_service.imaging import FORMATS
from eca_service.oip import OUTPUTS
from eca_service.registry import Registry

PHOTO = "build/demo/images/dog-1.jpg"  # there in a clone, from which `make serve` is run
# A dog of 24 x 24 pixels, as WebP.
TINY = (
    "UklGRnYAAABXRUJQVlA4IGoAAAAQBACdASoYABgAPzmSu1ivKiWjqAqp4CcJQBbZAT1fcmmIVqCeIld0QABU0M5n81lgqR0z12+3"
    "Zv3ZLWtGqJoAZLUxj1TjXQ1LPk7vcpeMCy73MwOLSqALHdcTEPru0El9V0Mm5zZnAAAA"
)
TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "deadline in milliseconds; default: the service's ECA_DEADLINE_MS",
    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
}
JSON_LENGTH = {
    "name": schemas.HEADER_LENGTH,
    "in": "header",
    "description": "length of the JSON at the body's start; after it, each image follows its length in four bytes",
    "schema": {"type": "integer", "minimum": 0},
}
KEYS = {
    "Bearer": {"type": "http", "scheme": "bearer"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
REFUSED = {"$ref": "#/components/schemas/Refused"}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {
    "schema": {
        "type": "object",
        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["image"],
    }
}
IMAGES_JSON = {
    "schema": {
        "type": "object",
        "properties": {
            "images": {
                "type": "array",
                "items": {"type": "object", "properties": {"b64": {"type": "string"}}, "required": ["b64"]},
            }
        },
        "required": ["images"],
    },
    "example": {"images": [{"b64": TINY}]},
}
TENSOR = {
    "schema": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"description": "returned unchanged"},
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"const": INPUT},
                        "datatype": {"const": "BYTES"},
                        "shape": {"type": "array", "items": {"type": "integer"}, "description": "[number of images]"},
                        "data": {"type": "array", "items": {}, "description": "base64 of each image's file"},
                        "parameters": {
                            "type": "object",
                            "description": "`binary_data_size`: bytes after the JSON, instead of data",
                        },
                    },
                },
            },
            "outputs": {
                "type": "array",
                "description": "default: all",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": list(OUTPUTS)},
                        "parameters": {"type": "object", "description": "`binary_data`: true to return bytes"},
                    },
                },
            },
            "parameters": {
                "type": "object",
                "description": "`top_k`; `binary_data_output`: true to return all outputs as bytes",
            },
        },
    },
    "example": {
        "inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": [TINY]}],
        "parameters": {"top_k": 3},
    },
}
PREDICTION = {"index": 5, "label": "dog", "score": 0.98}
TIMING = {"decode": 0.41, "queue": 0.0, "infer": 3.2, "total": 3.9}
CROP = {"left": 50.0, "top": 0.0, "right": 450.0, "bottom": 400.0}
SEEN = {"crop": CROP, "upright": {"width": 500, "height": 400, "crop": CROP}}
CLASSIFIED = {
    "model": "resnet14-eca",
    "version": 1,
    "request_id": "5b0c1f0a4a5e4bb7a1f8d0a3c0f3f6a2",
    "results": [{"predictions": [PREDICTION], "warnings": []}],
    "timing_ms": TIMING,
}
EXPLAINED = {
    "model": "resnet14-eca",
    "version": 1,
    "request_id": "5b0c1f0a4a5e4bb7a1f8d0a3c0f3f6a2",
    "class": {**PREDICTION, "logit": 8.1, "bias": 0.1},
    "map": [[1.5, 2.5], [1.0, 3.0]],
    "image": {"width": 500, "height": 400, "orientation": 1},
    **SEEN,
    "predictions": [PREDICTION],
    "warnings": [],
    "timing_ms": TIMING,
}
COMPARED = {
    "request_id": "5b0c1f0a4a5e4bb7a1f8d0a3c0f3f6a2",
    "image": {"width": 500, "height": 400, "orientation": 1},
    "results": [
        {
            "model": "resnet14-eca",
            "version": 1,
            "architecture": "resnet14_cifar",
            "attention": "eca",
            **SEEN,
            "predictions": [PREDICTION],
            "timing_ms": TIMING,
        }
    ],
    "warnings": [],
    "timing_ms": {"total": 4.2},
}


def takes_images(answer: dict[str, Any], curl: str) -> dict[str, Any]:
    """The OpenAPI of a route whose body is images, raw, in a form or in JSON, and which answers like `answer`.

    `curl` is the rest of an example's command line: what follows the service's address.
    """
    kinds = {f"image/{kind.lower()}": BINARY for kind in FORMATS} | {"application/octet-stream": BINARY}
    content = {**kinds, "multipart/form-data": FORM, "application/json": IMAGES_JSON}
    return _operation(content, answer, f"curl --data-binary @PHOTO 'URL{curl}'")


def takes_tensor() -> dict[str, Any]:
    """The OpenAPI of the Open Inference Protocol's `infer`, with its binary tensor data."""
    answer = {
        "model_name": "resnet14-eca",
        "model_version": "1",
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1, 1], "data": ["dog"]}],
    }
    curl = (
        "curl -H 'Content-Type: application/json' "
        f'-d \'{{"inputs": [{{"name": "{INPUT}", "shape": [1], "datatype": "BYTES", "data": ["\''
        "$(base64 -w 0 PHOTO)'\"]}]}' 'URL/v2/models/{model}/infer'"
    )
    found = _operation({"application/json": TENSOR, "application/octet-stream": BINARY}, answer, curl)
    found["parameters"] = [TIMEOUT, JSON_LENGTH]
    return found


def _operation(content: dict[str, Any], answer: dict[str, Any], curl: str) -> dict[str, Any]:
    wrong = problem(ServiceError("bad_request", "the request holds no image"), "5b0c1f0a4a5e4bb7a1f8d0a3c0f3f6a2")
    return {
        "x-curl": curl,
        "parameters": [TIMEOUT],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"example": answer}}},
            "default": {
                "description": "An error; its `code` is stable, `advice` says what to do",
                "content": {"application/problem+json": {"schema": REFUSED, "example": wrong}},
            },
        },
    }


def _ask_for_keys(document: dict[str, Any], access: Access) -> None:
    document["components"]["securitySchemes"] = KEYS
    document["security"] = [{name: []} for name in KEYS]
    for path, item in document["paths"].items():
        if access.is_open(path):
            for operation in item.values():
                operation["security"] = []


def install(app: FastAPI, registry: Registry, access: Access, url: str) -> None:
    """Has the application describe itself: as reached at `url`, with the default model in the examples, and with what
    asks for a key.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title,
                version=app.version,
                description="Classifies images with attention-enhanced networks, and shows why.",
                routes=app.routes,
            )
            schemas.describe(app.openapi_schema)
            if access.keyed:
                _ask_for_keys(app.openapi_schema, access)
        found = deepcopy(app.openapi_schema)
        model = registry.models.get(registry.default or "")
        values = {"model": model.contract.name, "version": model.contract.version} if model else {}
        photo = PHOTO if Path(PHOTO).exists() else "photo.jpg"
        for path in found["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "path" and parameter["name"] in values:
                        parameter["example"] = values[parameter["name"]]
                if curl := operation.pop("x-curl", None):
                    if access.keyed:
                        curl = curl.replace("curl", 'curl -H "Authorization: Bearer $KEY"', 1)
                    for name, value in (("PHOTO", photo), ("URL", url), *((f"{{{k}}}", v) for k, v in values.items())):
                        curl = curl.replace(name, str(value))
                    operation["description"] += f"\n\n```sh\n{curl}\n```"
        return found

    app.openapi = document  # type: ignore[method-assign]
