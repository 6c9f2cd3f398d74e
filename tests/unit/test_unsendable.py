"""What the client cannot send at all is refused before anybody is asked, and what is odd is sent as it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from eca_service.client import AsyncClient, Client, FileResult

from tests.ports import free_port
from tests.unit.made_server import Call, asked, both, classified, error_of, server


@both
@pytest.mark.parametrize("key", ["eca_3NPE\neca_second", "eca_3NPE second", "eca_3NPE\x00", "eca_3NPEé"])
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_key_that_cannot_be_sent_is_not_shown(kind: type, scheme: str, key: str) -> None:
    error = error_of(kind, f"{scheme}://localhost:{free_port()}", classified, key=key)
    assert error.code == "unauthorized"
    assert "eca_" not in str(error)


@both
def test_a_key_is_stripped(kind: type) -> None:
    with server(401, b'{"code": "unauthorized", "detail": "whose key?"}') as (place, seen):
        assert error_of(kind, f"http://{place}", classified, key="secret\r\n").code == "unauthorized"
        assert [headers["authorization"] for _, headers in seen] == ["Bearer secret"]


@both
def test_authorities_that_cannot_be_read(kind: type, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    for scheme in ("https", "grpcs"):
        for ca in (Path("/nope"), tmp_path / "text"):
            error = error_of(kind, f"{scheme}://localhost:1", classified, ca=ca)
            assert (error.code, f"{ca} holds no certificate" in error.detail) == ("untrusted", True)


@both
@pytest.mark.parametrize(("timeout_s", "sent"), [(float("inf"), 86_400_000), (1e7, 86_400_000), (0, 1), (-5, 1)])
def test_any_time_may_be_given(kind: type, timeout_s: float, sent: int) -> None:
    with server(404, b'{"code": "model_not_found"}') as (place, seen):
        call: Call = lambda client: client.classify(b"image", timeout_s=timeout_s)  # noqa: E731
        assert error_of(kind, f"http://{place}", call).code == "model_not_found"
    assert int(seen[0][1]["x-request-timeout-ms"]) == pytest.approx(sent, abs=100)


@both
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x/../resnet14-se", " a", "a\udcff"])
def test_names_that_address_another_are_refused(kind: type, name: str) -> None:
    questions: list[Call] = [
        lambda client: client.classify(b"image", name),
        lambda client: client.explain(b"image", name),
        lambda client: client.compare(b"image", ["a,b"]),
    ]
    if kind is Client:
        questions += [lambda client: client.pin(name), lambda client: client.unpin(name)]
    with server(200, b"{}") as (place, seen):
        for question in questions:
            assert error_of(kind, f"http://{place}", question).code == "model_not_found"
        assert seen == []


@both
@pytest.mark.parametrize("ask", ["explain", "overlay"])
def test_a_class_that_is_no_text_is_refused(kind: type, ask: str) -> None:
    """As a command line has bytes that are no UTF-8."""
    with server(200, b"{}") as (place, seen):
        error = error_of(kind, f"http://{place}", lambda client: getattr(client, ask)(b"image", "a", "\udcff"))
        assert (error.code, seen) == ("bad_parameter", [])
        assert str(error).encode()


@both
def test_a_name_stays_a_name(kind: type) -> None:
    with server(404, b'{"code": "model_not_found"}') as (place, seen):
        error_of(kind, f"http://{place}", lambda client: client.classify(b"image", "a#?%é"))
        assert seen[0][0] == "/v1/models/a%23%3F%25%C3%A9/classify"


@both
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_version_is_of_a_model(kind: type, scheme: str) -> None:
    url = f"{scheme}://localhost:{free_port()}"
    error = error_of(kind, url, lambda client: client.classify(b"image", version=1))
    assert (error.code, "name the model" in error.detail) == ("bad_parameter", True)


@both
def test_a_path_that_no_file_can_have(kind: type) -> None:
    assert error_of(kind, "http://localhost:1", lambda client: client.classify("a\0b")).code == "unreadable"


def test_a_file_that_no_path_can_name_ends_nothing(tmp_path: Path) -> None:
    with Client(f"http://localhost:{free_port()}") as client:
        (found,) = client.classify_files([tmp_path / "a\0b"])
    assert found.error is not None
    assert (found.error.code, found.error.__traceback__) == ("unreadable", None)


@both
def test_no_request_at_once_is_refused(kind: type, tmp_path: Path) -> None:
    """And not waited for."""

    async def gathered(client: AsyncClient) -> list[FileResult]:
        found = client.classify_files([tmp_path], concurrency=0)
        return [await asyncio.wait_for(anext(found), 5)]

    call: Call = (
        gathered if kind is AsyncClient else lambda client: list(client.classify_files([tmp_path], concurrency=0))
    )
    with pytest.raises(ValueError, match="at least one request"):
        asked(kind, f"http://localhost:{free_port()}", call)
