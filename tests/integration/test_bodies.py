"""What bodies may hold: forms of every kind, compressed ones, JSON and tensors that are made to cost much."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import infer_request
from tests.integration.conftest import FRESH, MODEL, Service, golden_png
from tests.unit.image_files import encoded, noise

FORM = {"content-type": "multipart/form-data; boundary=b"}
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1]}
DIGITS = "9" * 5000
LARGE = 31 << 20


def part(image: bytes, told: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="f"; {told}\r\n\r\n'.encode() + image + b"\r\n"


@pytest.fixture
def image(repository: Path) -> bytes:
    return golden_png(repository, MODEL)


@pytest.mark.parametrize("told", ['filename="a.png"', "filename*=UTF-8''%C3%A9.png", 'filename=""'])
def test_every_file_of_a_form_has_its_answer(service: Service, image: bytes, told: str) -> None:
    body = part(b"no image", told) + part(image, 'filename="b.png"') + b"--b--\r\n"
    for content, more in ((body, {}), (gzip.compress(body), {"content-encoding": "gzip"})):
        answer = service.ask("POST", "/v1/classify", content=content, headers=FORM | more)
        assert answer.status_code == 200, answer.text
        assert ["error" in row for row in answer.json()["results"]] == [True, False]


def test_a_form_s_charset_is_not_followed(service: Service, image: bytes) -> None:
    """Nobody reads its texts. As punycode this one is none, and others of a megabyte hold up all for half a minute."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="t"\r\n\r\na-9\r\n' + part(image, 'filename="b"') + b"--b--\r\n"
    )
    told = {"content-type": "multipart/form-data; boundary=b; charset=punycode"}
    answer = service.ask("POST", "/v1/classify", content=body, headers=told)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 1), answer.text


@pytest.mark.parametrize("lost", [6, 40, 150])
def test_a_form_that_is_cut_off_is_refused(service: Service, image: bytes, lost: int) -> None:
    body = part(image, 'filename="a.png"') + part(image, 'filename="b.png"') + b"--b--\r\n"
    answer = service.ask("POST", "/v1/classify", content=body[:-lost], headers=FORM)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert "cut off" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("multipart/form-data", "names no boundary; leave that header to the library"),
        (FORM["content-type"], "has text fields but no file; curl sends one with -F image=@cat.jpg"),
    ],
)
def test_what_a_form_lacks_is_told(service: Service, told: str, sentence: str) -> None:
    """As a script sends it that sets the header itself, and `curl -F image=cat.jpg`."""
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ncat.jpg\r\n--b--\r\n'
    answer = service.ask("POST", "/v1/classify", content=body, headers={"content-type": told})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert sentence in answer.json()["detail"]


def test_what_is_no_base64_is_told_what_it_must_be(service: Service, image: bytes) -> None:
    """A data URL, as FileReader gives it; lines, as MIME has them; URL-safe, unpadded."""
    text = base64.b64encode(image + b"\xfb" * (9 + (1 - len(image)) % 3)).decode()
    assert "+" in text
    assert text.endswith("==")
    texts = [
        text,
        f"data:image/png;base64,{text}",
        f"{text[:76]}\n{text[76:]}",
        text.replace("+", "-"),
        text.rstrip("="),
    ]
    answer = service.ask("POST", "/v1/classify", json={"images": [{"b64": one} for one in texts]})
    right, *wrong = answer.json()["results"]
    assert "predictions" in right
    assert {row["error"]["code"] for row in wrong} == {"bad_request"}
    assert all("without line breaks and without a data:...;base64, prefix" in row["error"]["detail"] for row in wrong)


def test_a_large_file_of_a_form_is_not_written_to_disk(service: Service) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' + bytes(3 << 20)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {4 << 20}\r\nContent-Type: "
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sender:
        sender.sendall(f"{head}{FORM['content-type']}\r\n\r\n".encode() + part)
        end, seen = time.monotonic() + 1, set()
        while time.monotonic() < end:
            for link in Path(f"/proc/{service.process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                    seen.add(os.readlink(link))
    assert not [name for name in seen if name.startswith(tempfile.gettempdir()) and name.endswith("(deleted)")]


def test_of_two_content_types_the_last_holds(service: Service, image: bytes) -> None:
    headers = [("content-type", FORM["content-type"]), ("content-type", "image/png")]
    assert FRESH.post(f"{service.url}/v1/classify", content=image, headers=headers).status_code == 200


def test_all_members_of_a_compressed_body_are_read(service: Service, image: bytes) -> None:
    """As pigz and bgzip write them (RFC 1952, 2.2)."""
    several = gzip.compress(image[:100]) + gzip.compress(image[100:])
    large = encoded(noise(200, 200))
    blocks = b"".join(gzip.compress(large[at : at + 50_000]) for at in range(0, len(large), 50_000))
    headers = {"content-encoding": "gzip"}
    for whole in (several, blocks):
        assert service.ask("POST", "/v1/classify", content=whole, headers=headers).status_code == 200
    assert service.ask("POST", "/v1/classify", content=image, headers={"content-encoding": ""}).status_code == 200
    for broken in (b"", several[:-1], several + b"x", gzip.compress(b"") * 10_000 + several):
        answer = service.ask("POST", "/v1/classify", content=broken, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    started = time.monotonic()
    million = service.ask("POST", "/v1/classify", content=gzip.compress(b"") * 1_000_000, headers=headers)
    assert (million.status_code, time.monotonic() - started < 5) == (400, True), "each costs more than its 20 bytes"


def test_what_is_unpacked_counts_as_a_body_of_its_size(service: Service) -> None:
    """30 KB each; all of them unpacked would be three times as much as may be in flight."""
    packed = gzip.compress(encoded(Image.new("RGB", (3000, 3000))) + bytes(LARGE - (1 << 16)))
    headers = {"content-encoding": "gzip", "x-request-timeout-ms": "60000"}

    def ask(_: int) -> int:
        return int(service.ask("POST", "/v1/classify", content=packed, headers=headers).status_code)

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, each) for each in range(24)]
        time.sleep(0.3)
        started = time.monotonic()
        assert service.ask("GET", "/livez").status_code == 200
        assert time.monotonic() - started < 2
        assert {200, 429} == {each.result() for each in asked}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", b'{"images":[' + b"[]," * 5_000_000 + b"[]]}"),
        (f"/v2/models/{MODEL}/infer", b'{"inputs":[' + b"{}," * 5_000_000 + b"{}]}"),
        ("/v1/classify", b"[" * 5_000_000),
    ],
)
def test_json_of_millions_of_values_costs_nobody_his_time(service: Service, path: str, body: bytes) -> None:
    before, headers = service.memory_kib, {"content-type": "application/json"}
    waits, began = list[float](), time.monotonic()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(service.ask, "POST", path, content=body, headers=headers)
        while not asked.done():
            started = time.monotonic()
            assert service.ask("GET", "/livez").status_code == 200
            waits.append(time.monotonic() - started)
        took = time.monotonic() - began
        assert max(waits) < max(1, took / 2), "others waited for most of that time"
        assert asked.result().json()["code"] == "bad_request"
    assert service.memory_kib - before < 100_000


def test_an_output_is_given_once(service: Service, image: bytes) -> None:
    outputs = [{"name": "label"}] * 2
    body = {"inputs": [TENSOR | {"data": [""]}], "outputs": outputs}
    assert "twice" in service.ask("POST", f"/v2/models/{MODEL}/infer", json=body).json()["detail"]
    request = infer_request(MODEL, [image])
    for _ in range(2):
        request.outputs.add(name="score")
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel, pytest.raises(grpc.RpcError) as told:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("path", "body", "headers", "code"),
    [
        (f"/v2/models/{MODEL}/versions/{DIGITS}/infer", {"inputs": []}, {}, "version_not_found"),
        (f"/v2/models/{MODEL}/infer", {"inputs": []}, {"inference-header-content-length": DIGITS}, "bad_request"),
        (f"/v2/models/{MODEL}/infer", {"inputs": [TENSOR | {"datatype": "\ud800"}]}, {}, "bad_request"),
        (
            f"/v2/models/{MODEL}/infer",
            {"inputs": [TENSOR | {"data": [""]}], "parameters": {"top_k": DIGITS}},
            {},
            "bad_parameter",
        ),
    ],
)
def test_what_callers_write_is_their_own_fault(
    service: Service, path: str, body: dict[str, Any], headers: dict[str, str], code: str
) -> None:
    answer = service.ask("POST", path, content=json.dumps(body), headers=headers)
    assert answer.json()["code"] == code


def test_what_grpc_s_callers_write_is_their_own_fault(service: Service, image: bytes) -> None:
    long, bare = infer_request(MODEL, [image]), infer_request(MODEL, [image])
    long.model_version = DIGITS
    bare.parameters["top_k"].Clear()
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for request, status in ((long, grpc.StatusCode.NOT_FOUND), (bare, grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as told:
                stub.ModelInfer(request, timeout=20)
            assert told.value.code() is status
        with pytest.raises(grpc.RpcError) as told:
            next(stub.ModelStreamInfer(iter([long]), timeout=20))
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as told:
            raw(b"\xff" * 40, timeout=20)
        assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_refused_image_is_not_kept(service: Service) -> None:
    """Until garbage is looked for, which is rare: an error in a circle with its answer would keep the body."""
    body, before = b"x" * LARGE, service.memory_kib
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}", options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(8):
            assert service.ask("POST", "/v1/classify", content=body).status_code == 415
            assert service.ask("POST", f"/v1/models/{MODEL}/explain", content=body).status_code == 415
            with pytest.raises(grpc.RpcError) as told:
                stub.ModelInfer(infer_request(MODEL, [body]), timeout=20)
            assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert service.memory_kib - before < 8 * LARGE / 1024


def test_statistics_of_all_models(service: Service, repository: Path) -> None:
    names = sorted(path.name for path in repository.iterdir() if (path / "config.pbtxt").is_file())
    assert [row["name"] for row in service.ask("GET", "/v2/models/stats").json()["model_stats"]] == names
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        told = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=20)
    assert [row.name for row in told.model_stats] == names
