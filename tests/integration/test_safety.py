"""Keys, rate limits, TLS and management on a service that has them all; over every protocol."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timezone
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from eca_service import metrics
from eca_service.keys import make
from eca_service.registry import PIN_FILE
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, Service, ending, golden_png, ready, run, start
from tests.integration.test_reload import publish, served

all_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
TOKEN = "t" * 40
BURST = 20  # for the key `slow`; all others may do what they like


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, keys, a token."""
    made = tmp_path_factory.mktemp("safe")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(made / "ca.pem"))
    (made / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(made / "key.pem"))
    (made / "token").write_text(TOKEN)
    return made


@pytest.fixture(scope="module")
def safe(repository: Path, folder: Path) -> Iterator[Service]:
    """A service with keys, TLS, a token, closed documents, and two versions of the model."""
    own = folder / "repository"
    shutil.copytree(repository / MODEL, own / MODEL)
    publish(own, 2)
    secret, line = make("tests")
    (folder / "keys").write_text(line + "\n")
    service = start(
        own,
        folder,
        tls_cert=folder / "cert.pem",
        tls_key=folder / "key.pem",
        api_keys_file=folder / "keys",
        management_token_file=folder / "token",
        metrics="key",
        docs="key",
        log_level="debug",
        rate_limit=1000,
        rate_burst=2000,
    )
    service.ca, service.key = folder / "ca.pem", secret
    with ending(service):
        yield service


def until(condition: Callable[[], bool], service: Service, timeout_s: float = 20) -> None:
    """Waits for `condition`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.05)


@all_protocols
def test_who_has_a_key_is_answered(safe: Service, repository: Path, protocol: str) -> None:
    image = golden_png(repository, MODEL)
    assert call(protocol, safe, MODEL, [image, image]).code == "ok"
    assert call(protocol, safe, MODEL, [image], headers={"authorization": "", "x-api-key": safe.key}).code == "ok"
    for wrong in ("", "Bearer", f"Bearer {safe.key}x", safe.key, f"Basic {safe.key}"):
        reply = call(protocol, safe, MODEL, [image], headers={"authorization": wrong})
        assert reply.code == "unauthorized", wrong
        assert "x-request-id" in reply.headers
        if protocol != "grpc":
            assert reply.headers["www-authenticate"] == 'Bearer realm="eca-serve"'


def test_keys_are_replaced_without_a_gap(safe: Service, folder: Path, repository: Path) -> None:
    image, keys = golden_png(repository, MODEL), folder / "keys"
    before = keys.read_text()
    secret, line = make("tests")

    def codes(headers: dict[str, str]) -> set[str]:
        return {call(protocol, safe, MODEL, [image], headers=headers).code for protocol in PROTOCOLS}

    new = {"authorization": f"Bearer {secret}"}
    assert codes(new) == {"unauthorized"}
    try:
        keys.write_text(f"{before}{line}\n")
        until(lambda: codes(new) == {"ok"}, safe)
        assert codes({}) == {"ok"}, "the old one as well"
    finally:
        keys.write_text(before)
    until(lambda: codes(new) == {"unauthorized"}, safe)
    assert codes({}) == {"ok"}


def test_what_is_open_and_what_is_not(safe: Service) -> None:
    nobody = {"authorization": ""}
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert safe.ask("GET", path, nobody).status_code == 200, path
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/v2", f"/v2/models/{MODEL}", "/metrics", "/docs", "/nothing"):
        assert safe.ask("GET", path, nobody).status_code == 401, path
        assert safe.ask("GET", path).status_code == (404 if path == "/nothing" else 200), path
    with safe.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        metadata = service_pb2.ModelMetadataRequest(name=MODEL)
        calls: list[Callable[[list[tuple[str, str]]], Any]] = [
            lambda keys: stub.ModelMetadata(metadata, metadata=keys),
            lambda keys: stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=keys),
            lambda keys: next(reflected(iter([asked]), metadata=keys)),
        ]
        for ask in calls:
            with pytest.raises(grpc.RpcError) as caught:
                ask([])
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert ask(safe.metadata)


def test_plain_connections_and_strangers_are_not_answered(safe: Service, folder: Path) -> None:
    with pytest.raises(httpx.HTTPError):
        FRESH.get(safe.url.replace("https", "http") + "/livez")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        FRESH.get(safe.url + "/livez")
    with grpc.insecure_channel(f"localhost:{safe.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)


def test_when_its_certificate_expires_is_shown(safe: Service) -> None:
    found = metrics.parse(safe.ask("GET", "/metrics").text)
    shown = [one.value for one in found if one.name == "eca_tls_certificate_expiry_timestamp_seconds"]
    assert shown == [trustme.DEFAULT_EXPIRY.replace(tzinfo=timezone.utc).timestamp()]


def test_a_handshake_that_does_not_come_ends_like_a_head(repository: Path, folder: Path, tmp_path: Path) -> None:
    files: Any = {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}
    silent = start(repository, tmp_path, "gateway", triton_url="127.0.0.1:1", head_timeout_ms=1000, **files)
    silent.ca = folder / "ca.pem"
    try:
        silent.await_ready("/livez")
        for port in (int(silent.url.rpartition(":")[2]), silent.grpc_port):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                assert connection.recv(1) == b"", "closed, within ten seconds"
    finally:
        silent.process.send_signal(signal.SIGTERM)
        assert silent.process.wait(30) == 0


def test_the_command_line_speaks_to_it(safe: Service, folder: Path, repository: Path) -> None:
    image = folder / "image.png"
    image.write_bytes(golden_png(repository, MODEL))
    (folder / "secret").write_text(safe.key + "\n")
    for url in (safe.url, f"grpcs://localhost:{safe.grpc_port}"):
        known = ("--url", url, "--ca", folder / "ca.pem")
        done = run("eca_service", "classify", image, *known, "--api-key-file", folder / "secret")
        assert done.returncode == 0, done.stderr
        done = run("eca_service", "classify", image, *known)
        assert (done.returncode, "a key is needed" in done.stderr) == (2, True), done.stderr
    done = run("eca_service", "classify", image, "--url", safe.url)
    assert (done.returncode, "is not trusted" in done.stderr, "--ca" in done.stderr) == (2, True, True), done.stderr
    done = run("eca_service", "classify", image, "--url", safe.url, "--ca", image)
    assert (done.returncode, "holds no certificate" in done.stderr) == (2, True), done.stderr


def test_doctor_looks_at_it(safe: Service, folder: Path) -> None:
    environment = {
        "ECA_HTTP_PORT": safe.url.rpartition(":")[2],
        "ECA_REPOSITORY": str(folder / "repository"),
        "ECA_TLS_CERT": str(folder / "cert.pem"),
        "ECA_TLS_KEY": str(folder / "key.pem"),
        "ECA_API_KEYS_FILE": str(folder / "keys"),
    }
    done = run("eca_service", "doctor", "--seconds", 0.2, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "The service at https://127.0.0.1:" in done.stdout
    environment["ECA_API_KEYS_FILE"] = str(folder / "key.pem")
    done = run("eca_service", "doctor", "--seconds", 0.2, environment=environment)
    assert (done.returncode, "line 1 is not `NAME sha256:HASH`" in done.stderr) == (1, True), done.stderr


def test_rollback_over_http(safe: Service, folder: Path, repository: Path) -> None:
    until(lambda: int(safe.ask("GET", f"/v1/models/{MODEL}").json()["version"]) == 2, safe)
    route, token = f"/v1/models/{MODEL}/pin", {"authorization": f"Bearer {TOKEN}"}
    for headers in ({}, {"authorization": ""}, {"authorization": f"Bearer {TOKEN}x"}, {"x-api-key": TOKEN}):
        for method in ("PUT", "DELETE"):
            refused = safe.ask(method, route, headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert safe.ask("GET", "/v1/models", token).status_code == 401, "the token is no key"
    for body in (b"{}", b'{"version": "1"}', b'{"version": true}', b"[]", b"x", b'{"version": 0}'):
        assert safe.ask("PUT", route, token, content=body).status_code == 400, body
    for path, body in ((route, b'{"version": 9}'), ("/v1/models/absent/pin", b""), ("/v1/models/../pin", b"")):
        assert safe.ask("PUT", path, token, content=body).status_code in {401, 404}, path
    asked = ("rollback", MODEL, "--url", safe.url, "--ca", folder / "ca.pem", "--token-file", folder / "token")
    done = run("eca_service", *asked)
    assert (done.returncode, done.stdout) == (0, f"{MODEL}: version 1 is to be served\n"), done.stderr
    until(lambda: int(safe.ask("GET", f"/v1/models/{MODEL}").json()["version"]) == 1, safe)
    done = run("eca_service", *asked)
    assert (done.returncode, "has no version before 1" in done.stderr) == (2, True), done.stderr
    assert run("eca_service", *asked, "--newest").returncode == 0
    until(lambda: int(safe.ask("GET", f"/v1/models/{MODEL}").json()["version"]) == 2, safe)
    assert run("eca_service", *asked, "--to", 1).returncode == 0
    until(lambda: int(safe.ask("GET", f"/v1/models/{MODEL}").json()["version"]) == 1, safe)
    assert safe.ask("DELETE", route, token).json() == {"model": MODEL, "pinned": None}
    until(lambda: int(safe.ask("GET", f"/v1/models/{MODEL}").json()["version"]) == 2, safe)
    pin_file = folder / "repository" / MODEL / PIN_FILE
    pin_file.mkdir()  # as little to be written as what is mounted read-only
    try:
        refused = safe.ask("PUT", route, token)
        done = run("eca_service", *asked)
    finally:
        pin_file.rmdir()
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    assert (done.returncode, "cannot be written here" in done.stderr) == (2, True), done.stderr
    assert "is ECA_MANAGEMENT_TOKEN_FILE set" not in done.stderr


def test_without_a_token_there_is_no_management(service: Service, folder: Path) -> None:
    for method in ("PUT", "DELETE"):
        answer = service.ask(method, f"/v1/models/{MODEL}/pin", {"authorization": f"Bearer {TOKEN}"})
        unknown = service.ask(method, f"/v1/models/{MODEL}/nothing")
        assert (answer.status_code, answer.json()["detail"]) == (unknown.status_code, unknown.json()["detail"])
        assert answer.status_code == 404
    assert "/pin" not in service.ask("GET", "/openapi.json").text
    asked = ("rollback", MODEL, "--url", service.url, "--token-file", folder / "token")
    done = run("eca_service", *asked)
    assert (done.returncode, "ECA_MANAGEMENT_TOKEN_FILE" in done.stderr) == (2, True), done.stderr
    assert served(service) == 1


def test_nothing_secret_is_in_the_log(safe: Service, folder: Path, repository: Path) -> None:
    """After all of the above, at debug level: no key, no token, no image, no header but the id; every line is JSON."""
    image = golden_png(repository, MODEL)
    header = {"x-secret-header": "zq-header-value", "cookie": "zq-cookie", "x-request-id": "zq-id"}
    for protocol in PROTOCOLS:
        call(protocol, safe, MODEL, [image], headers=header)
        call(protocol, safe, MODEL, [b"zq-image-bytes" + image], headers=header)
    safe.ask("POST", f"/v1/classify?key={safe.key}", header, content=image)
    safe.ask("DELETE", f"/v1/models/{MODEL}/pin", {"authorization": f"Bearer {TOKEN}"})
    log = safe.log.read_text()
    assert log.count("zq-id") == 9
    for secret in (safe.key, TOKEN, "zq-header-value", "zq-cookie", "zq-image-bytes", "IHDR", "PRIVATE KEY"):
        assert secret not in log, secret
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    rest = [line for line in log.splitlines() if not line.startswith("{")]
    assert all(re.match("ECA Serve is ready|Documentation at|  curl ", line) for line in rest), rest
    requests = [line for line in lines if line["message"] == "request"]
    assert {line["caller"] for line in requests if line["code"] == "ok" and line["images"]} == {"tests"}
    assert {line["caller"] for line in requests if "/pin" in line["route"] and line["code"] == "ok"} == {"management"}


@pytest.fixture(scope="module")
def limited(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service that lets each key send a burst of images, and then one in twenty seconds; and its keys."""
    folder = tmp_path_factory.mktemp("limited")
    made = {name: make(name) for protocol in PROTOCOLS for name in (f"{protocol}-a", f"{protocol}-b")}
    (folder / "keys").write_text("\n".join(line for _, line in made.values()))
    with ready(repository, folder, api_keys_file=folder / "keys", rate_limit=0.05, rate_burst=BURST) as service:
        yield service, {name: secret for name, (secret, _) in made.items()}


@all_protocols
def test_each_key_has_its_own_rate(limited: tuple[Service, dict[str, str]], repository: Path, protocol: str) -> None:
    service, keys = limited
    image = golden_png(repository, MODEL)
    first, second = ({"authorization": f"Bearer {keys[f'{protocol}-{name}']}"} for name in "ab")
    codes = [call(protocol, service, MODEL, [image] * 5, headers=first).code for _ in range(4)]
    assert codes == ["ok"] * 4, "twenty images"
    reply = call(protocol, service, MODEL, [image], headers=first)
    assert reply.code == "rate_limited"
    assert 10 <= int(reply.headers["retry-after"]) <= 20
    assert call(protocol, service, MODEL, [image] * 30, headers=second).code == "ok", "more than a burst is owed"
    reply = call(protocol, service, MODEL, [image], headers=second)
    assert reply.code == "rate_limited"
    assert 200 <= int(reply.headers["retry-after"]) <= 220
    stranger = call(protocol, service, MODEL, [image], headers={"authorization": "Bearer x"})
    assert stranger.code == "unauthorized"
    headers = {"authorization": f"Bearer {keys['rest-a']}"}
    assert service.ask("GET", "/livez", headers).status_code == service.ask("GET", "/metrics").status_code == 200
    found = re.search(r'eca_rejected_total{reason="rate_limited"} (\d+)', service.ask("GET", "/metrics").text)
    assert found is not None
    assert int(found[1]) >= 2


def test_without_keys_an_address_has_its_rate_over_all_protocols(repository: Path, tmp_path: Path) -> None:
    """Two workers count together; no engine is needed to be refused, or not."""
    limits: Any = {"rate_limit": 0.01, "rate_burst": 8, "rate_by": "address"}
    service = start(repository, tmp_path, "gateway", triton_url="127.0.0.1:1", workers=2, **limits)
    try:
        service.await_ready("/livez")
        codes = [call(protocol, service, MODEL, [b"x"]).code for protocol in PROTOCOLS * 3]
        assert codes == ["model_not_ready"] * 8 + ["rate_limited"] * 4
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, headers={"x-forwarded-for": "127.0.0.1"}) as client:
            assert client.get(service.url + "/v1/models").status_code == 200, "another address"
        lied = {"x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1"}
        assert {call(protocol, service, MODEL, [b"x"], headers=lied).code for protocol in PROTOCOLS} == {"rate_limited"}
    finally:
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0


def test_what_cannot_be_used_is_a_sentence(repository: Path) -> None:
    done = run("eca_service", "up", "--repository", repository, environment={"ECA_API_KEYS_FILE": "absent"})
    assert done.returncode == 2
    assert done.stderr == "eca-serve: ECA_API_KEYS_FILE=absent cannot be read: No such file or directory\n"
