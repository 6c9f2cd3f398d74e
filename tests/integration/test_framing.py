"""Where requests begin and end on a connection: several in a piece, another protocol offered, chunks. Real sockets."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest
from eca_service.connections import LINGER_S

from tests.integration.conftest import FRESH, MODEL, STRICT_HEAD_S, Service, golden_png, slow_image
from tests.integration.wire import asked, connect, post

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
        assert time.monotonic() - started > STRICT_HEAD_S, "or this is no trial"
        assert first.startswith(b"HTTP/1.1 200 ")
        assert [answer[:3] for answer in asked(connection, following[20:])] == [b"200"]
