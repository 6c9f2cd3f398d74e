"""What the routes that need no Triton answer, and how often a parameter may be given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eca_service import query
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


PATH = "; routes that take it have it in their path"


@pytest.mark.parametrize(
    ("route", "told"),
    [
        ("/v1/classify?topk=1", "'topk' here; there are: top_k"),
        ("/v1/classify?top_k=1&Top-K=2", "'Top-K' here; there are: top_k"),
        ("/v1/classify?model=m", f"'model' here; there are: top_k{PATH}"),
        ("/v1/models/m/classify?version=1", f"'version' here; there are: top_k{PATH}"),
        ("/v1/models/m/explain?Class=dog", "'Class' here; there are: class, top_k, gates, opacity, side"),
        ("/v1/models/m/explain?gate=true", "'gate' here; there are: class, top_k, gates, opacity, side"),
        ("/v1/compare?model=m", "'model' here; there are: models, top_k"),
    ],
)
async def test_a_parameter_that_is_misspelt_is_told(tmp_path: Path, route: str, told: str) -> None:
    """It was passed over: five classes for the one that was asked for, or the default model's for another's."""
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        answer = (await client.post(route, content=b"x")).json()
    assert (answer["code"], answer["detail"]) == ("bad_request", f"there is no parameter {told}")


async def test_an_option_in_a_form_is_told(tmp_path: Path) -> None:
    """It was passed over, and the default model answered."""
    publish(tmp_path, CONTRACT)
    app = application(tmp_path)
    app.state.core.readiness._reasons.clear()
    async with client_of(app) as client:
        for name in ("model", "top_k", "topK"):
            answer = await client.post("/v1/classify", files={"image": b"x"}, data={name: "m"})
            told = answer.json()
            assert (told["code"], told["detail"].split(";")[0]) == ("bad_request", f"in a form '{name}' is not read")


async def test_an_option_in_an_address_of_the_open_inference_protocol_is_told(tmp_path: Path) -> None:
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        for path in ("/v2/models/m/infer?top_k=1", "/v2/models/m?version=1"):
            told = (await client.request("POST" if "infer" in path else "GET", path)).json()
            assert (told["code"], "is not read" in told["detail"]) == ("bad_request", True)
        assert (await client.get("/v2/models/m?trace=1")).status_code == 200
        assert (await client.get("/v2/")).json() == (await client.get("/v2")).json()
        assert (await client.get("/v2/models/m/ready")).json() == {"name": "m", "ready": False}
        assert (await client.get("/v2/health/ready")).json() == {"ready": False}


def test_no_parameter_is_unknown_to_that(tmp_path: Path) -> None:
    paths = application(tmp_path).openapi()["paths"].values()
    described = (one for path in paths for operation in path.values() for one in operation.get("parameters", ()))
    assert {one["name"] for one in described if one["in"] == "query"} == set(query.TAKEN)


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/classify"), ("POST", "/v1/compare"), ("GET", "/v1/models")])
async def test_what_others_add_to_an_address_is_passed_over(tmp_path: Path, method: str, path: str) -> None:
    publish(tmp_path, CONTRACT)
    async with client_of(application(tmp_path)) as client:
        for query in ("key=abc&utm_source=x&_=1&=", "k=3&%C3%A4=1", "version=2" if method == "GET" else "v=2"):
            answer = await client.request(method, f"{path}?{query}", content=b"")
            assert (answer.status_code, answer.json().get("code")) in {(200, None), (503, "model_not_ready")}


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
