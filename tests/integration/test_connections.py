"""Callers that are slow, silent or endless: they are given up, and the others do not notice. Real sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from eca_service.connections import LINGER_S
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, Service, golden_png, ready, slow_image

HEAD_S = 1.2


@pytest.fixture(scope="module")
def strict(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits a second for a body and for the next request, and longer for a head that has begun."""
    folder = tmp_path_factory.mktemp("strict")
    with ready(repository, folder, head_timeout_ms=1000 * HEAD_S, body_timeout_ms=1000, keep_alive_ms=1000) as running:
        yield running


def connect(service: Service, port: int = 0) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port or int(service.url.rpartition(":")[2])))
    connection.settimeout(20)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the service closes."""
    got = b""
    try:
        while data := connection.recv(1 << 16):
            got += data
    except ConnectionResetError:
        pass
    return got


def still_answers(service: Service, repository: Path) -> None:
    """Every protocol, promptly."""
    started = time.monotonic()
    for protocol in PROTOCOLS:
        assert call(protocol, service, MODEL, [golden_png(repository, MODEL)], timeout_ms=10_000).code == "ok"
    assert time.monotonic() - started < 8


def test_a_thousand_idle_connections(strict: Service, repository: Path) -> None:
    idle = [connect(strict) for _ in range(1000)]
    quiet = [connect(strict, strict.grpc_port) for _ in range(100)]
    try:
        still_answers(strict, repository)
        started = time.monotonic()
        assert {everything(connection) for connection in idle} == {b""}
        for connection in quiet:
            everything(connection)  # gRPC's own settings, and then the end
        assert time.monotonic() - started < 10, "they are all given up"
    finally:
        for connection in (*idle, *quiet):
            connection.close()


def test_heads_that_dribble(strict: Service, repository: Path) -> None:
    ended = threading.Event()
    slow = [connect(strict) for _ in range(100)]

    def dribble() -> None:
        text = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 10_000
        for at in range(len(text)):
            for connection in slow:
                try:
                    connection.send(text[at : at + 1])
                except OSError:
                    continue
            if ended.wait(0.05):
                return

    sender = threading.Thread(target=dribble)
    sender.start()
    try:
        started = time.monotonic()
        still_answers(strict, repository)
        answers = [everything(connection) for connection in slow]
        assert time.monotonic() - started < 10
        # where a byte crosses the service's closing, the kernel may drop the answer
        told = [answer for answer in answers if answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")]
        assert len(told) > len(answers) / 2, set(answers)
        assert json.loads(told[0].partition(b"\r\n\r\n")[2])["code"] == "408"
        total_ms = float(told[0].partition(b"server-timing: total;dur=")[2].partition(b"\r")[0])
        assert 1000 * HEAD_S - 10 < total_ms < 5000
    finally:
        ended.set()
        sender.join()
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("piece", [1 << 10, 16 << 20], ids=["pieces", "at once"])
@pytest.mark.parametrize("kind", ["one line", "many lines", "one target"])
def test_heads_without_end(strict: Service, repository: Path, kind: str, piece: int) -> None:
    line = {"one line": b"X-Long: " + b"a" * (8 << 20), "many lines": b"X-Many: a\r\n" * (1 << 19), "one target": b""}
    target = b"/" + b"a" * (8 << 20 if kind == "one target" else 0)
    text = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + line[kind]
    before = strict.memory_kib
    with connect(strict) as connection:
        try:
            for at in range(0, len(text), piece):
                connection.sendall(text[at : at + piece])
        except OSError:  # given up before we were through
            pass
        else:
            assert everything(connection).startswith(b"HTTP/1.1 431 ")
    assert strict.memory_kib - before < 24 << 10
    still_answers(strict, repository)


def test_head_of_the_allowed_size(strict: Service) -> None:
    assert FRESH.get(strict.url + "/livez", headers={"x-long": "a" * (30 << 10)}).status_code == 200
    assert FRESH.get(f"{strict.url}/livez?{'a' * (30 << 10)}").status_code == 200
    for refused in (
        FRESH.get(strict.url + "/livez", headers={"x-long": "a" * (40 << 10)}),
        FRESH.get(f"{strict.url}/livez?{'a' * (40 << 10)}"),
    ):
        assert (refused.status_code, refused.json()["code"], refused.json()["status"]) == (431, "431", 431)
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert refused.json()["request_id"] in strict.log.read_text()
    assert 'eca_requests_total{code="431",model="unmatched",protocol="http"}' in FRESH.get(strict.url + "/metrics").text


def test_what_is_not_http(strict: Service, repository: Path) -> None:
    with connect(strict) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert b"\r\nx-request-id: " in answer
    assert b"\r\nserver-timing: total;dur=" in answer
    with connect(strict) as connection:
        answers = asked(connection, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01")
    assert [answer[:3] for answer in answers] == [b"200", b"400"]
    with connect(strict) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 "), "before all was sent"
        answers = asked(connection, b"67890", b"\x16\x03\x01")
    assert [answer[:3] for answer in answers] == [b"400"]
    with connect(strict) as connection:
        answers = asked(connection, post(golden_png(repository, MODEL)) + b"\x16\x03\x01")
    assert [answer[:3] for answer in answers] == [b"200"], "what was asked before is answered, and nothing before that"


def test_a_body_that_dribbles(strict: Service, repository: Path) -> None:
    """It ends when the service says so, whatever time the caller gives itself; then the connection ends too."""
    with connect(strict) as connection:
        head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nX-Request-Timeout-Ms: 100000000\r\nContent-Length: 1000000"
        connection.sendall(f"{head}\r\n\r\n".encode())
        started, got = time.monotonic(), b""
        connection.setblocking(False)
        while time.monotonic() < started + 15:
            try:
                connection.send(b"x")
                if not (data := connection.recv(1 << 16)):
                    break
                got += data
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                break
            time.sleep(0.05)
        assert got.startswith(b"HTTP/1.1 504 ")
        assert 1 < time.monotonic() - started < 12
    assert "eca_inflight 0.0" in FRESH.get(strict.url + "/metrics").text
    still_answers(strict, repository)


def test_kept_alive_and_then_not(strict: Service) -> None:
    with connect(strict) as connection:
        for _ in range(3):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"live":true}'):
                data = connection.recv(1 << 16)
                assert data, "it is kept"
                answer += data
        started = time.monotonic()
        assert everything(connection) == b""
        assert time.monotonic() - started < 5


def test_who_takes_no_answers_is_given_up(strict: Service, repository: Path) -> None:
    """They would stay in memory for as long as he likes."""
    ask = b"POST /v1/models/%b/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % (b"x" * 2000)
    with connect(strict) as connection, contextlib.suppress(ConnectionResetError):  # no time out
        while True:  # until what we send is no longer read, for an answer waits to be taken
            connection.sendall(ask)
    still_answers(strict, repository)


def test_too_large_is_told_while_the_caller_still_sends(strict: Service) -> None:
    with connect(strict) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + bytes(1 << 20)
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        started = time.monotonic()
        everything(connection)
        assert time.monotonic() - started < 8, "and it is not read for ever"


@pytest.mark.parametrize(
    ("path", "size", "status"), [("/v1/classify", 40_000_000, 413), ("/v1/models/nobody/classify", 5_000_000, 404)]
)
def test_who_wants_no_further_answer_gets_an_early_one(service: Service, path: str, size: int, status: int) -> None:
    """Python's own client asks for each connection to be closed."""
    request = urllib.request.Request(f"{service.url}{path}", bytes(size), {"Content-Type": "application/octet-stream"})
    for _ in range(10):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(request, timeout=20)
        assert told.value.code == status
        assert json.load(told.value)["detail"]


def test_such_a_connection_is_closed_as_soon_as_all_is_sent(service: Service) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(head + bytes(500))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
        started = time.monotonic()
        connection.sendall(bytes(500))
        everything(connection)
        assert time.monotonic() - started < LINGER_S / 2


def test_who_sends_all_behind_an_early_answer_is_kept(service: Service) -> None:
    """As is who asks for something, and then for nothing for a while."""
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n%b\r\n"
    with connect(service) as connection, connect(service) as idle:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
        connection.sendall(bytes(500))
        idle.sendall(get % b"")
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        time.sleep(LINGER_S + 0.5)
        for kept in (connection, idle):
            kept.sendall(get % b"Connection: close\r\n")
            assert b"HTTP/1.1 200 " in everything(kept)


def test_grpc_metadata_without_end(strict: Service, repository: Path) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{strict.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=[("x-long", "a" * (1 << 20))])
        assert caught.value.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    still_answers(strict, repository)


def asked(connection: socket.socket, *pieces: bytes) -> list[bytes]:
    """The answers to what is sent piece by piece, until the service closes."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.1)
    return everything(connection).split(b"HTTP/1.1 ")[1:]


def post(body: bytes, *fields: bytes) -> bytes:
    head = (b"POST /v1/classify HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join((*head, b"", b"")) + body


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_who_offers_another_protocol_is_answered_in_this_one(strict: Service, repository: Path, pieces: int) -> None:
    """Java's own client offers h2c with each request; llhttp alone would not read the body behind."""
    image = golden_png(repository, MODEL)
    head = (b"POST /v1/classify HTTP/1.1", b"Host: x", b"Transfer-Encoding: Chunked", *H2C)
    chunked = b"\r\n".join((*head, b"", b"%x" % len(image), image, b"0", b"", b""))
    bare = b"GET /livez HTTP/1.1\r\n" + b"\r\n".join((b"Host: x", *H2C)) + b"\r\n\r\n"
    several = post(image, *H2C) + bare + chunked + post(image)
    step = -(-len(several) // pieces)
    with connect(strict) as connection:
        answers = asked(connection, *(several[at : at + step] for at in range(0, len(several), step)))
    assert [answer[:3] for answer in answers] == [b"200"] * 4
    with connect(strict) as connection:
        last = post(image, *H2C, b"Connection: close")
        assert [answer[:3] for answer in asked(connection, last + bare)] == [b"200"], "whatever is behind it"
    with connect(strict) as connection:  # many of them in one piece
        assert len(asked(connection, 400 * bare)) == 400


@pytest.mark.parametrize("field", [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, gzip"])
def test_a_body_without_end_is_refused_also_there(strict: Service, field: bytes) -> None:
    head = b"\r\n".join((b"POST /v1/classify HTTP/1.1", b"Host: x", field, *H2C, b"", b""))
    with connect(strict) as connection:
        answers = asked(connection, head + b"x" * 100)
    assert answers[0][:3] == b"400"
    assert "Traceback" not in strict.log.read_text()


@pytest.mark.parametrize(
    ("version", "fields", "status"),
    [
        (b"1.1", (), b"400"),
        (b"1.1", (b"Host: a", b"host: b"), b"400"),
        (b"1.1", (b"Host:",), b"200"),
        (b"1.0", (), b"200"),
        (b"1.0", (b"Host: a", b"Host: a"), b"400"),
    ],
)
def test_a_request_names_its_host_once(
    strict: Service, version: bytes, fields: tuple[bytes, ...], status: bytes
) -> None:
    head = b"\r\n".join((b"GET /livez HTTP/" + version, *fields, b"Connection: close", b"", b""))
    with connect(strict) as connection:
        (answer,) = asked(connection, head)
    assert answer[:3] == status
    if status == b"400":
        problem = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert problem["code"] == "bad_request"
        assert "Host" in problem["detail"]


@pytest.mark.parametrize("field", [b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity"])
def test_a_body_without_end_is_refused(strict: Service, field: bytes) -> None:
    with connect(strict) as connection:
        answers = asked(connection, b"\r\n".join((b"POST /v1/classify HTTP/1.1", b"Host: x", field, b"", b"x" * 100)))
    assert [answer[:3] for answer in answers] == [b"400"]


@pytest.mark.parametrize(
    "rest", [b"5\nhello\n0\n\n", b"-5\r\nhello", b"F" * 17 + b"\r\n", b"0\r\nContent-Length: 3\r\n\r\n"]
)
@pytest.mark.parametrize("first", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_chunks_that_are_none_are_refused(strict: Service, first: bytes, rest: bytes) -> None:
    """And whatever is behind them is no request; the log has one line, of what the caller was told."""
    mine = f"chunks-{first.hex()[:4]}-{rest.hex()[:8]}"
    head = (b"POST /v1/classify HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked", b"X-Request-Id: " + mine.encode())
    behind = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    started = time.monotonic()
    with connect(strict) as connection:
        answers = asked(connection, first + b"\r\n".join((*head, b"", b"")) + rest + behind)
    assert [answer[:3] for answer in answers] == [b"200"] * bool(first) + [b"400"]
    assert b"connection: close\r\n" in answers[-1]
    assert json.loads(answers[-1].partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert time.monotonic() - started < LINGER_S + 3
    lines = [json.loads(line) for line in strict.log.read_text().splitlines() if mine in line]
    assert [(line["code"], line["status"]) for line in lines] == [("bad_request", 400)]


def test_a_service_that_stood_still_reads_before_it_gives_up(strict: Service, repository: Path) -> None:
    """All its clocks have run out when it goes on, as after a laptop's sleep; the head's too, of whom it answers."""
    image = golden_png(repository, MODEL)
    large = post(image + bytes(100_000))
    for answered_s in (0, 0.005, 0.01, 0.02, 0.05, 0.5):
        with connect(strict) as connection:
            connection.sendall(large + large[:20])
            time.sleep(answered_s)
            strict.process.send_signal(signal.SIGSTOP)
            try:
                time.sleep(0.1)
                connection.sendall(large[20:])
                time.sleep(HEAD_S)
            finally:
                strict.process.send_signal(signal.SIGCONT)
            assert [a[:3] for a in asked(connection)] == [b"200"] * 2, answered_s


def test_who_asks_by_head_gets_no_body(service: Service) -> None:
    length = len(FRESH.get(service.url + "/v1/models").content)
    with connect(service) as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):
            found += connection.recv(65536)
    first, second = found.partition(b"\r\n\r\n")[::2]
    assert f"\r\ncontent-length: {length}\r\n".encode() in first
    assert (first[:12], second[:12]) == (b"HTTP/1.1 200",) * 2


def test_requests_that_do_not_await_each_other(strict: Service, service: Service, repository: Path) -> None:
    """A body and the beginning of the next head in one piece; a second body that is late, but in time."""
    image = golden_png(repository, MODEL)
    large = post(image + bytes(100_000))  # what follows an image is not looked at
    for ends in ((len(large) + 20,), (300, len(large) + 20)):
        pieces = [(2 * large)[start:end] for start, end in zip((0, *ends), (*ends, 2 * len(large)), strict=True)]
        with connect(strict) as connection:
            assert [a[:3] for a in asked(connection, *pieces)] == [b"200"] * 2, ends
    with connect(strict) as connection:
        assert [a[:3] for a in asked(connection, large[:300], large[300:] + large[:20])] == [b"200", b"408"]
    with connect(service) as connection:
        last = post(image, b"Connection: close")
        connection.sendall(post(image) + last[: -len(image)])
        time.sleep(LINGER_S + 0.5)
        assert [a[:3] for a in asked(connection, image)] == [b"200"] * 2


def test_nobody_is_cut_off_for_the_next_head_while_being_answered(strict: Service, repository: Path) -> None:
    listed = {"images": [{"b64": base64.b64encode(slow_image()).decode()}] * 8}
    fields, following = (
        (b"Content-Type: application/json", b"X-Request-Timeout-Ms: 60000"),
        post(golden_png(repository, MODEL)),
    )
    with connect(strict) as connection:
        started = time.monotonic()
        connection.sendall(post(json.dumps(listed).encode(), *fields) + following[:20])
        first = connection.recv(1 << 16)
        assert time.monotonic() - started > HEAD_S, "or this is no trial"
        assert first.startswith(b"HTTP/1.1 200 ")
        assert [answer[:3] for answer in asked(connection, following[20:])] == [b"200"]
