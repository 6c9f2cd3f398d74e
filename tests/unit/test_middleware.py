"""What is around every HTTP request, on the application without its Triton."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from eca_service import arrivals, metrics, page
from eca_service.app import create_app
from eca_service.connections import ABORT
from eca_service.errors import ServiceError
from eca_service.keys import make
from eca_service.logs import JsonLines
from eca_service.settings import Settings
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

SAFE = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def application(tmp_path: Path, **settings: object) -> FastAPI:
    return create_app(Settings(repository=tmp_path, **settings))  # type: ignore[arg-type]


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_every_answer_is_safe_for_a_browser(tmp_path: Path) -> None:
    app = application(tmp_path)

    @app.get("/own")
    async def own() -> Response:
        return PlainTextResponse("x", headers={"Content-Security-Policy": "own", "Cache-Control": "max-age=60"})

    async with client_of(app) as client:
        for method, path in (("GET", "/livez"), ("GET", "/nothing"), ("DELETE", "/livez"), ("POST", "/v1/classify")):
            headers = (await client.request(method, path)).headers
            assert SAFE.items() <= dict(headers).items(), path
        headers = (await client.get("/own")).headers
        assert headers.get_list("content-security-policy") == ["own"]
        assert headers.get_list("cache-control") == ["max-age=60"]
        assert headers["x-frame-options"] == "DENY"
        docs = await client.get("/docs")
        assert "cdn.jsdelivr.net" in docs.headers["content-security-policy"]
        assert "script-src https://cdn.jsdelivr.net 'sha256-" in docs.headers["content-security-policy"]


async def test_while_it_leaves_connections_are_closed(tmp_path: Path) -> None:
    app = application(tmp_path)
    async with client_of(app) as client:
        assert "connection" not in (await client.get("/livez")).headers
        app.state.core.leaving = True
        for path in ("/livez", "/nothing"):
            assert (await client.get(path)).headers["connection"] == "close"


def _at_once() -> Response:
    raise RuntimeError("secret details")


def _later() -> Response:
    def parts() -> object:
        yield b"begun"
        raise RuntimeError("secret details")

    return StreamingResponse(parts())  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [_at_once, _later])
async def test_what_nobody_caught(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Callable[[], Response]
) -> None:
    caplog.set_level(logging.INFO)
    app = application(tmp_path)
    app.get("/broken")(broken)
    async with client_of(app) as client:
        answer = await client.get("/broken", headers={"x-request-id": "mine"})
        text = (await client.get("/metrics")).text
    if broken is _at_once:
        assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (500, "internal", "mine")
        assert (answer.headers["x-request-id"], answer.headers["x-frame-options"]) == ("mine", "DENY")
        assert "secret" not in answer.text
    assert 'eca_requests_total{code="internal",model="unmatched",protocol="http"}' in text
    line = next(record for record in caplog.records if record.message == "request")
    assert json.loads(JsonLines().format(line))["code"] == "internal"
    assert "RuntimeError: secret details" in caplog.text, "for the operator"


async def test_the_log_says_why_the_service_failed_and_not_what_callers_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only who had asked was told what Triton said."""
    caplog.set_level(logging.INFO)
    app = application(tmp_path)

    @app.get("/fails/{code}")
    async def fails(code: str) -> Response:
        raise ServiceError(code, "Triton failed on m: no memory")

    async with client_of(app) as client:
        for code in ("internal", "bad_request"):
            assert (await client.get(f"/fails/{code}")).json()["detail"] == "Triton failed on m: no memory"
        app.state.core.draining = True
        assert (await client.post("/v1/classify", content=b"x")).status_code == 503
    fields = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    assert [(one["code"], one.get("reason")) for one in fields] == [
        ("internal", "Triton failed on m: no memory"),
        ("bad_request", None),
        ("draining", "the service is shutting down"),
    ]


async def test_what_has_no_route_is_called_alike_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the body, the metrics and the log; where clients of the Open Inference Protocol call, as they look for it."""
    caplog.set_level(logging.INFO)
    async with client_of(application(tmp_path)) as client:
        for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/v1/classify", 405), ("PUT", "/v2", 405)):
            answer = await client.request(method, path)
            body = answer.json()
            assert (answer.status_code, body["status"], body["code"]) == (status, status, str(status))
            assert body["request_id"] == answer.headers["x-request-id"]
            assert body.get("error", "").startswith("405: no route" if path == "/v2" else "")
            protocol = "oip" if path == "/v2" else "http"
            series = f'eca_requests_total{{code="{status}",model="unmatched",protocol="{protocol}"}}'
            assert series in (await client.get("/metrics")).text
            lines = [record for record in caplog.records if record.message == "request"]
            assert json.loads(JsonLines().format(lines[-1]))["code"] == str(status)
        assert answer.headers["allow"] == "GET, HEAD"
        assert (await client.delete("/openapi.json")).headers["allow"] == "GET, HEAD"
        assert (await client.head("/v1/classify")).headers["allow"] == "POST"


async def test_who_takes_no_answer_holds_no_permit(tmp_path: Path) -> None:
    """Until he takes the answers before, his connection lets no other be sent: there may be as many as there are
    permits.
    """
    app = application(tmp_path)
    house, held = app.state.core.admission, []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(_: object) -> None:
        held.append((house.images, house.size, house.requests))

    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": [], "root_path": ""}
    for path in ("/v1/classify", "/v1/models/none/explain", "/nothing"):
        await app(scope | {"path": path}, receive, send)
    assert set(held) == {(0, 0, 0)}


async def test_who_takes_no_answer_does_not_keep_it_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A picture is 39 MB at most, and one who takes a byte now and then is no idle caller."""
    app = application(tmp_path, max_inflight_bytes=1 << 20)

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(600 << 10))

    async def ask(taken: asyncio.Event, cut_off: asyncio.Event) -> int:
        size = 0

        async def receive() -> dict[str, object]:
            return {"type": "http.request"}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal size
            size += len(message.get("body", b""))
            if size and not cut_off.is_set():
                await taken.wait()

        scope = {"type": "http", "method": "GET", "path": "/large", "query_string": b"", "headers": [], "root_path": ""}
        await app(scope | {ABORT: cut_off.set}, receive, send)
        return size

    never, now = asyncio.Event(), asyncio.Event()
    now.set()
    cuts = [asyncio.Event() for _ in range(3)]
    with caplog.at_level(logging.INFO):
        slow = [asyncio.create_task(ask(never, cut)) for cut in cuts[:2]]
        await asyncio.sleep(0.1)
        assert await ask(now, cuts[2]) == 600 << 10
        assert [cut.is_set() for cut in cuts] == [True, True, False]
        never.set()
        await asyncio.gather(*slow)
    assert app.state.core.admission.size == 0
    codes = [record.fields["code"] for record in caplog.records if hasattr(record, "fields")]
    assert codes == ["ok", "overloaded", "overloaded"]


@pytest.mark.parametrize("dribbles", [False, True])
async def test_slow_uploads_leave_permits_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dribbles: bool
) -> None:
    """Of four they hold two: who does not send all that he announced costs nothing and could shut out all others."""
    monkeypatch.setattr(arrivals, "QUICK_S", 0.05)
    app, never = application(tmp_path, max_inflight_images=4), asyncio.Event()

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def slow(kept: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"x"
        while dribbles and kept is never:  # the oldest is who began first, whatever he has sent since
            await asyncio.sleep(0.01)
            yield b"x"
        await kept.wait()
        yield b"y"

    async with client_of(app) as client:
        first = asyncio.create_task(client.post("/upload", content=slow(never)))
        ends, others = asyncio.Event(), []
        for _ in range(2):
            await asyncio.sleep(0.2)
            others.append(asyncio.create_task(client.post("/upload", content=slow(ends))))
        answer = await asyncio.wait_for(first, 10)
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert "comes slowly" in answer.json()["detail"]
        assert (await client.post("/upload", content=b"x" * 9)).text == "9"
        ends.set()
        assert [(await other).text for other in others] == ["2", "2"], "two may be slow"
    assert app.state.core.admission.images == 0


async def test_a_slow_upload_is_no_slow_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The header tells the caller all of its time; what is alerted on counts from the last byte of the body."""
    caplog.set_level(logging.INFO)
    app = application(tmp_path)

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def dribbling() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield b"x"

    def counted() -> float:
        shown = metrics.parse(metrics.exposition().decode())
        ours = {"protocol": "http", "model": "unmatched"}
        return sum(one.value for one in shown if one.name == "eca_request_seconds_sum" and one.labels == ours)

    async with client_of(app) as client:
        await client.get("/livez")  # whose series is there from now on
        before = counted()
        answer = await client.post("/upload", content=dribbling())
        assert answer.text == "3"
        spent_ms = 1000 * (counted() - before)
    total_ms = float(answer.headers["server-timing"].removeprefix("total;dur="))
    line = next(json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request")
    assert (line["bytes"], line["ms"]["receive"] > 290) == (3, True)
    assert spent_ms == pytest.approx(total_ms - line["ms"]["receive"], abs=0.0015)


async def test_switches(tmp_path: Path) -> None:
    secret, line = make("team")
    (tmp_path / "keys").write_text(line)
    keys = {"authorization": f"Bearer {secret}"}
    paths = ("/metrics", "/docs", "/openapi.json")
    for value, without, with_key in (("on", 200, 200), ("key", 401, 200), ("off", 401, 404)):
        app = application(tmp_path, metrics=value, docs=value, api_keys_file=tmp_path / "keys")
        async with client_of(app) as client:
            assert {(await client.get(path)).status_code for path in paths} == {without}
            assert {(await client.get(path, headers=keys)).status_code for path in paths} == {with_key}
    async with client_of(application(tmp_path, metrics="off", docs="off")) as client:
        answer = await client.get("/docs")
        assert (answer.status_code, "/docs" in answer.json()["detail"]) == (404, False)


async def test_the_document_says_where_a_key_is_asked(tmp_path: Path) -> None:
    """So that its page and what is generated from it can send one; and a deadline."""
    (tmp_path / "keys").write_text(make("team")[1])
    app = application(tmp_path, api_keys_file=tmp_path / "keys")
    async with client_of(app) as client:
        document = (await client.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"]["Bearer"] == {"type": "http", "scheme": "bearer"}
        assert document["security"] == [{"Bearer": []}, {"X-API-Key": []}]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                answer = await client.request(method, path.replace("{version}", "1"))
                assert (answer.status_code == 401) == (operation.get("security") != []), path
                if method == "post":
                    assert "X-Request-Timeout-Ms" in {one["name"] for one in operation["parameters"]}
                    assert '-H "Authorization: Bearer $KEY"' in operation["description"]
    async with client_of(application(tmp_path)) as client:
        assert '"security' not in (await client.get("/openapi.json")).text


async def test_what_may_be_got_may_be_asked_by_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with client_of(application(tmp_path)) as client:
        for path, status in (
            *(("/livez", 200), ("/readyz", 503), ("/v2/health/live", 200), ("/v2/health/ready", 503), ("/v2", 200)),
            *(("/", 200), ("/docs", 200), ("/openapi.json", 200), ("/metrics", 200), ("/v1/models", 200)),
            *(("/v1/models/m", 404), ("/nothing", 404)),
        ):
            asked, got = await client.head(path), await client.get(path)
            assert asked.status_code == got.status_code == status, path
            assert asked.headers["content-type"] == got.headers["content-type"]
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    assert {"GET /v1/models/{model}", "HEAD /v1/models/{model}"} < {line["route"] for line in lines}


async def test_the_page_has_its_own_policy_and_switch(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(make("team")[1])
    async with client_of(application(tmp_path, api_keys_file=tmp_path / "keys")) as client:
        for path in page.PATHS:
            answer = await client.get(path)
            assert (answer.status_code, answer.headers.get_list("content-security-policy")) == (200, [page.POLICY])
            assert answer.headers["x-frame-options"] == "DENY"
    async with client_of(application(tmp_path, page="off")) as client:
        assert {(await client.get(path)).status_code for path in page.PATHS} == {404}


async def test_the_page_has_no_link_to_where_nothing_is_or_nobody_is_let_in(tmp_path: Path) -> None:
    tags = set()
    keys = tmp_path / "keys"
    keys.write_text(make("team")[1])
    for value, file, status, links in (
        ("on", keys, 200, 2),
        ("key", None, 200, 2),
        ("key", keys, 401, 0),
        ("off", None, 404, 0),
    ):
        async with client_of(application(tmp_path, docs=value, api_keys_file=file)) as client:
            found = await client.get("/")
            assert ((await client.get("/docs")).status_code, found.text.count('href="docs"')) == (status, links)
            tags.add(found.headers["etag"])
    assert len(tags) == 2, "a browser that holds the other asks anew"


async def test_the_page_is_sent_again_only_where_it_changed(tmp_path: Path) -> None:
    kinds = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}
    async with client_of(application(tmp_path)) as client:
        for path in page.PATHS:
            first = await client.get(path)
            assert first.headers["cache-control"] == "no-cache", "it is asked for each time"
            assert first.headers["content-type"] == f"{kinds[Path(path).suffix]}; charset=utf-8"
            held = {"if-none-match": f'"other", {first.headers["etag"]}'}
            again = await client.get(path, headers=held)
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
            assert (await client.get(path, headers={"if-none-match": '"other"'})).content == first.content


async def test_other_origins_are_let_in_by_name_only(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(make("team")[1])
    app = application(tmp_path, cors_origins="https://a.example, https://b.example", api_keys_file=tmp_path / "keys")
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with client_of(app) as client:
        for origin in ("https://a.example", "https://b.example"):
            answer = await client.options("/v1/classify", headers=asked | {"origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            refused = await client.get("/v1/models", headers={"origin": origin})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == origin, "so that the page can read why"
            assert {"x-request-id", "x-class-label"} <= set(
                refused.headers["access-control-expose-headers"].lower().split(", ")
            )
        answer = await client.options("/v1/classify", headers=asked | {"origin": "https://c.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers
    async with client_of(application(tmp_path)) as client:
        answer = await client.get("/v1/models", headers={"origin": "https://a.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (
            await client.options("/v1/classify", headers=asked | {"origin": "https://a.example"})
        ).status_code == 405


async def test_retry_after_is_when_a_token_is_there(tmp_path: Path) -> None:
    app = application(tmp_path, rate_limit=0.1, rate_by="address")
    async with client_of(app) as client:
        assert (await client.get("/v1/models")).status_code == 200
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert answer.headers["retry-after"] == "10"
        assert (await client.get("/livez")).status_code == 200, "health is not counted"
