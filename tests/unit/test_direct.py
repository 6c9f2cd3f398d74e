"""Which requests pass by FastAPI, and what of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eca_service import direct
from eca_service.errors import ServiceError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tests.unit.test_middleware import application, client_of

FASTAPI = "FastAPI"


async def taken(monkeypatch: pytest.MonkeyPatch, path: str, query: bytes, method: str = "POST") -> Any:
    """What `classify` is asked, with the route that is written down; or that FastAPI is."""
    found: list[Any] = []

    async def app(*_: object) -> None:
        found.append(FASTAPI)

    async def classify(request: Any, *given: object) -> Response:
        found.append((*given, request.scope["route"].path))
        return Response()

    async def nothing(*_: object) -> Any:
        return {"type": "http.disconnect"}

    monkeypatch.setattr(direct, "classify", classify)
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": []}
    await direct.Direct(app)(scope, nothing, nothing)
    return found[0]


ONE, VERSION = "/v1/models/{model}/classify", "/v1/models/{model}/versions/{version}/classify"


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/v1/classify", b"", (None, None, None, "/v1/classify")),
        ("/v1/classify", b"top_k=3", (None, None, 3, "/v1/classify")),
        ("/v1/models/a b/classify", b"", ("a b", None, None, ONE)),
        ("/v1/models/versions/classify", b"top_k=0", ("versions", None, 0, ONE)),
        ("/v1/models/a/versions/12/classify", b"top_k=5", ("a", 12, 5, VERSION)),
        ("/v1/models/a/versions/latest/classify", b"", FASTAPI),
        ("/v1/models/a/versions/-1/classify", b"", FASTAPI),
        ("/v1/models//classify", b"", FASTAPI),
        ("/v1/models/a/explain", b"", FASTAPI),
        ("/v1/classify/", b"", FASTAPI),
        ("/v1/classify", b"top_k=many", FASTAPI),
        ("/v1/classify", b"top_k=-1", FASTAPI),
        ("/v1/classify", b"top_k=3&top_k=4", FASTAPI),
        ("/v1/classify", b"top_k=" + b"9" * 5000, FASTAPI),
        ("/v1/classify", b"model=a", FASTAPI),
    ],
)
async def test_images_to_classify_pass_by(
    monkeypatch: pytest.MonkeyPatch, path: str, query: bytes, expected: object
) -> None:
    assert await taken(monkeypatch, path, query) == expected


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_other_methods_do_not(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    assert await taken(monkeypatch, "/v1/classify", b"", method) == FASTAPI


async def test_a_caller_that_leaves_has_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async def classify(*_: object) -> Response:
        raise ClientDisconnect

    monkeypatch.setattr(direct, "classify", classify)
    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "headers": []}
    with pytest.raises(ServiceError, match="client_closed"):
        await direct.Direct(None)(scope, None, None)  # type: ignore[arg-type]


async def test_the_application_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("FastAPI was asked")

    monkeypatch.setattr(APIRoute, "handle", broken)
    async with client_of(application(tmp_path)) as client:
        direct, other = [await client.post(f"/v1/classify{query}", content=b"x") for query in ("", "?unknown=1")]
    assert (direct.status_code, direct.json()["code"]) == (404, "model_not_found")
    assert (other.status_code, other.json()["code"]) == (500, "internal")
