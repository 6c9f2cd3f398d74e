"""What the client makes of servers that are not this service, slow or silent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from eca_service.client import AsyncClient, Client, FileResult, Retry
from eca_service.errors import CODES

from tests.ports import free_port
from tests.unit.made_server import Call, asked, both, classified, error_of, server


@both
def test_a_service_that_starts_again_is_waited_for(kind: type) -> None:
    """It has answered before, so that its address is no wrong one."""
    port = free_port()

    async def default_of(client: Any) -> str:
        found: str | Awaitable[str] = client.default_model()
        return found if isinstance(found, str) else await found

    async def twice(client: Any) -> list[str]:
        with server(200, b'{"models":[],"default":"first"}', port=port):
            names = [await default_of(client)]
        again = threading.Timer(1.5, stack.enter_context, [server(200, b'{"models":[],"default":"second"}', port=port)])
        again.start()
        names.append(await default_of(client))
        again.join()
        return names

    call = twice if kind is AsyncClient else lambda client: asyncio.run(twice(client))
    with ExitStack() as stack:
        assert asked(kind, f"http://localhost:{port}", call, retry=Retry(6)) == ["first", "second"]


@both
def test_a_scheme_may_be_in_capitals(kind: type) -> None:
    """And means the same: whoever is not trusted is not shown the key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with server(200, b"{}", tls=context) as (place, seen):
        assert error_of(kind, f"HTTPS://{place}", classified, key="secret", retry=Retry(1)).code == "untrusted"
        assert seen == []
    assert error_of(kind, f"Grpc://localhost:{free_port()}", classified, retry=Retry(1)).code == "unreachable"


@both
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_other_scheme_is_asked_about(kind: type, scheme: str) -> None:
    """Somebody listens, so that `eca-serve up` would not help."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with server(200, b"{}", tls=context if scheme == "http" else None) as (place, seen):
        error = error_of(kind, f"{scheme}://{place}", classified, retry=Retry(1))
        assert (error.code, seen) == ("unreachable", [])
        assert error.detail.endswith("does it speak http://, https:// or grpc://?")


@both
def test_the_systems_authorities_are_trusted(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By gRPC too, which brings a list of its own; a server that has no such method was reached."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    own = authority.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.configure_cert(context)
    running = grpc.server(ThreadPoolExecutor(1))
    pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
    port = running.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    running.start()
    try:
        with server(200, b"{}", tls=context) as (place, _):
            for url in (f"https://{place}", f"grpcs://localhost:{port}"):
                assert error_of(kind, url, classified, retry=Retry(1)).code == "not_the_service"
    finally:
        running.stop(None)


@both
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b"<html>no endpoints</html>"),
        (502, b"<html>Bad Gateway</html>"),
        (503, b"upstream connect error"),
        (503, b'{"message": "no healthy upstream"}'),
        (503, b'{"code": 503}'),
        (429, b""),
    ],
)
def test_a_proxy_s_refusal_is_tried_again(kind: type, status: int, body: bytes) -> None:
    with server(status, body, {"retry-after": "0"}) as (place, seen):
        error = error_of(kind, f"http://{place}", classified, retry=Retry(3, first_s=0.01))
        assert len(seen) == 3
    assert (error.fatal, error.passing, error.retry_after_s) == (False, True, 0)
    assert CODES[error.code].http in {429, 503}
    assert str(status) in error.detail


@both
@pytest.mark.parametrize("code", ["404", "405"])
def test_an_address_with_something_behind_it_ends_all(kind: type, code: str) -> None:
    told = f'{{"code": "{code}", "detail": "no such route", "request_id": "a"}}'.encode()
    with server(int(code), told) as (place, _):
        error = error_of(kind, f"http://{place}/v1", classified)
    assert (error.code, error.fatal, error.detail) == (code, True, f"at http://{place}/v1 no such route")


@both
def test_a_proxy_that_takes_less_is_sent_fewer_files(kind: type, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"image")

    async def gathered(client: AsyncClient) -> list[FileResult]:
        return [one async for one in client.classify_files(paths)]

    with server(413, b"<html>Request Entity Too Large</html>") as (place, seen):
        call: Call = gathered if kind is AsyncClient else lambda client: list(client.classify_files(paths))
        found = asked(kind, f"http://{place}", call)
    assert [(one.path, one.error.code, one.error.fatal) for one in found] == [
        (path, "body_too_large", False) for path in paths
    ]
    assert len(seen) == 5, "all three, one and two, each of the two"


@both
def test_a_proxy_is_for_other_machines(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with server(503, b"") as (place, seen):
        monkeypatch.setenv("http_proxy", f"http://{place}")
        for host in ("images.example.org", "127.0.0.1:1", "localhost:1", "[::1]:1"):
            error_of(kind, f"http://{host}", classified, retry=Retry(1))
        assert [path for path, _ in seen] == ["http://images.example.org/v1/classify"]


@both
@pytest.mark.parametrize("status", [200, 302, 404, 500])
@pytest.mark.parametrize(
    "body",
    [
        *(b"<html></html>", b'{"status": "ok"}', b"null", b"[]", b"1", b"\xff", b"[" * 100_000),
        *(b'{"results": []}', b'{"results": [{"predictions": 1}]}', b'{"models": {"a": 1}}', b'{"code": []}'),
    ],
)
def test_what_is_not_the_service_is_said(kind: type, status: int, body: bytes) -> None:
    questions: list[Call] = [
        classified,
        lambda client: client.classify_batch([b"image", b"image"]),
        lambda client: client.explain(b"image", "a"),
        lambda client: client.overlay(b"image", "a"),
        lambda client: client.compare(b"image", ["a", "b"]),
        lambda client: client.models(),
        lambda client: client.default_model(),
    ]
    if kind is Client:
        questions.append(lambda client: client.unpin("a"))
    with server(status, body) as (place, _):
        for question in questions:
            assert error_of(kind, f"http://{place}", question).code == "not_the_service"
        assert "is not this service" in asked(kind, f"http://{place}", lambda client: client.unready())


@both
def test_a_deadline_is_of_the_whole_answer(kind: type) -> None:
    with server(200, bytes(100), pause_s=0.1) as (place, _):
        started = time.monotonic()
        error = error_of(kind, f"http://{place}", lambda client: client.classify(b"image", timeout_s=0.5))
        assert time.monotonic() - started < 3
    assert error.code == "deadline_exceeded"


@both
@pytest.mark.parametrize("code", ["image_truncated", "overloaded"])
def test_a_batch_of_one_has_its_image_s_error_in_its_place(kind: type, code: str) -> None:
    with server(CODES[code].http, f'{{"code": "{code}", "detail": "so"}}'.encode()) as (place, _):
        call: Call = lambda client: client.classify_batch([b"image"])  # noqa: E731
        if code == "overloaded":
            assert error_of(kind, f"http://{place}", call, retry=Retry(1)).code == code
        else:
            (found,) = asked(kind, f"http://{place}", call)
            assert (found.code, found.detail) == (code, "so")
            assert found.__traceback__ is None, "by its frames it would hold the image"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_ctrl_c_ends_a_command_though_the_server_is_silent(tmp_path: Path, scheme: str) -> None:
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(b"image")
    # a shell's background jobs ignore SIGINT, and so would this one below it
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from eca_service.cli import main; main()"
    with socket.create_server(("localhost", 0)) as silent:
        url = f"{scheme}://localhost:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, "classify", str(tmp_path), "--url", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ) as process:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                started = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=90)
    assert time.monotonic() - started < 10, "not at the calls' own end, 30 s after they began"
    assert (process.returncode, b"Aborted!" in told, b"Traceback" in told) == (1, True, False)
