"""Callers that are slow, silent or endless: they are given up, and the others do not notice. Real sockets."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from eca_service.connections import LINGER_S
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, STRICT_HEAD_S, Service, golden_png
from tests.integration.wire import asked, connect, everything, post


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
        assert 1000 * STRICT_HEAD_S - 10 < total_ms < 5000
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
                time.sleep(STRICT_HEAD_S)
            finally:
                strict.process.send_signal(signal.SIGCONT)
            assert [a[:3] for a in asked(connection)] == [b"200"] * 2, answered_s
