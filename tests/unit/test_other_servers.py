"""What the client makes of servers that are not this service, slow or silent, and of what it cannot send at all."""

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
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from eca_service.client import AsyncClient, Client, ClientError, FileResult, Retry
from eca_service.errors import CODES

from tests.ports import free_port

both = pytest.mark.parametrize("kind", [Client, AsyncClient])
Call = Callable[[Any], Any]


def asked(kind: type, url: str, call: Call, **options: Any) -> Any:
    """What `call` makes of a client of that kind."""

    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            return await call(client)

    if kind is AsyncClient:
        return asyncio.run(run())
    with Client(url, **options) as client:
        return call(client)


def error_of(kind: type, url: str, call: Call, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as told:
        asked(kind, url, call, **options)
    return told.value


def classified(client: Any) -> Any:
    return client.classify(b"image")


@contextmanager
def server(
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    pause_s: float = 0,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> Iterator[tuple[str, list[tuple[str, Message]]]]:
    """Answers every request so, a byte each `pause_s`: its localhost:PORT, and the paths and headers it was sent."""
    seen: list[tuple[str, Message]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            for place in range(len(body) if pause_s else 1):
                self.wfile.write(body[place : place + 1] if pause_s else body)
                time.sleep(pause_s)

        do_GET = do_PUT = do_DELETE = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                """The caller went."""

    running = ThreadingHTTPServer(("localhost", port), Handler)
    if tls:
        running.socket = tls.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"localhost:{running.server_port}", seen
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


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
        assert error.detail.endswith("is it http://, https:// or grpc:// there?")


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
