"""What the routes that need no Triton answer, and how often a parameter may be given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eca_service.contract import Contract, read
from fastapi.responses import JSONResponse

from tests.unit.test_contract import CONTRACT
from tests.unit.test_middleware import application, client_of
from tests.unit.test_preflight import publish


async def test_contracts_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of thousands of classes are megabytes, and the event loop encodes them."""
    for name in ("a", "b"):
        publish(tmp_path, CONTRACT.model_copy(update={"name": name, "labels": ("Käse", 'a "dog"')}))
    one, other = (read(tmp_path / name / "1").public() for name in ("a", "b"))
    encoded, public = [], Contract.public

    def counted(self: Contract) -> dict[str, object]:
        encoded.append(self.name)
        return public(self)

    monkeypatch.setattr(Contract, "public", counted)
    async with client_of(application(tmp_path)) as client:
        for _ in range(2):
            for path, content in (("/v1/models", {"models": [one, other], "default": "a"}), ("/v1/models/b", other)):
                answer = await client.get(path)
                assert answer.content == JSONResponse(content).body
                assert answer.headers["content-type"] == "application/json"
    assert sorted(encoded) == ["a", "b"]


async def test_no_model_is_a_list_too(tmp_path: Path) -> None:
    async with client_of(application(tmp_path)) as client:
        assert json.loads((await client.get("/v1/models")).content) == {"models": [], "default": None}


@pytest.mark.parametrize(
    ("route", "parameter"),
    [
        ("/v1/models/m/explain?class=dog&class=cat", "class"),
        ("/v1/models/m/explain?side=64&opacity=1&side=64", "side"),
        ("/v1/classify?top_k=1&top_k=2", "top_k"),
        ("/v1/compare?models=m&top_k=many&top_k=2", "top_k"),
    ],
)
async def test_a_parameter_is_given_once(tmp_path: Path, route: str, parameter: str) -> None:
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        answer = await client.post(route, content=b"x")
        told = (answer.status_code, answer.json()["code"], answer.json()["detail"])
        assert told == (400, "bad_request", f"{parameter} is given 2 times; give it once")


@pytest.mark.parametrize("query", ["models=m&models=absent", "models=absent&models=m", "models=m,absent&models=m"])
async def test_models_to_compare_may_be_repeated(tmp_path: Path, query: str) -> None:
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        answer = await client.post(f"/v1/compare?{query}", content=b"x")
        assert (answer.status_code, "no model 'absent'" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize("given", ["soon", "nan", "0", "-1", "1e9", "999999999999", "5, 6"])
async def test_a_deadline_s_range_is_told(tmp_path: Path, given: str) -> None:
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        answer = await client.post("/v1/classify", content=b"x", headers={"x-request-timeout-ms": given})
    told = f"X-Request-Timeout-Ms is {given!r}, not a number above 0 and below 1e9"
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (400, "bad_parameter", told)
