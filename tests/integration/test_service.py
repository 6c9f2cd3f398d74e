"""The whole service: gateway and the real Triton Inference Server."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
from eca_service.contract import read
from PIL import Image

from tests.integration.conftest import DEMO, FRESH, MODEL, Service, golden_png, run
from tests.load.photographs import PHOTOS


@pytest.fixture(scope="module")
def repository(demo: Path) -> Path:
    """All networks."""
    return demo


def test_answers_are_the_network_s(service: Service, repository: Path) -> None:
    listed = FRESH.get(service.url + "/v1/models").json()["models"]
    assert {model["name"] for model in listed} == {p.name for p in repository.iterdir()}
    for model in listed:
        contract = read(repository / model["name"] / "1")
        assert "head" not in model
        route = f"{service.url}/v1/models/{contract.name}/classify"
        answer = FRESH.post(route, params={"top_k": 10}, content=golden_png(repository, contract.name))
        assert answer.status_code == 200
        scores = {p["index"]: p["score"] for p in answer.json()["results"][0]["predictions"]}
        expected = contract.golden.probabilities[0]
        np.testing.assert_allclose([scores[i] for i in range(10)], expected, atol=contract.golden.tolerance)


@pytest.mark.parametrize(
    "path", ["/v1/classify", f"/v1/models/{MODEL}/classify", f"/v1/models/{MODEL}/versions/1/classify"]
)
@pytest.mark.parametrize("body", ["image", "json", "none", "text"])
def test_what_passes_by_fastapi_is_answered_alike(service: Service, repository: Path, path: str, body: str) -> None:
    """A parameter that nobody knows has FastAPI look at all."""
    image = golden_png(repository, MODEL)
    listed = json.dumps({"images": [{"b64": base64.b64encode(image).decode()}, {"b64": "?"}]}).encode()
    content = {"image": image, "json": listed, "none": b"", "text": b"no image"}[body]
    headers = {"x-request-id": "mine", "content-type": "application/json" if body == "json" else "image/png"}
    for query in ("top_k=3", "top_k=11", "top_k=0"):
        direct, other = (
            FRESH.post(f"{service.url}{path}?{given}", content=content, headers=headers)
            for given in (query, f"{query}&unknown=1")
        )
        assert direct.status_code == other.status_code
        assert list(direct.headers) == list(other.headers)
        one, two = direct.json(), other.json()
        assert one.keys() == two.keys()
        changing = {"timing_ms", "results"}
        assert {k: v for k, v in one.items() if k not in changing} == {
            k: v for k, v in two.items() if k not in changing
        }
        rows = [each.get("results", []) for each in (one, two)]
        assert _close(*([row for row in each if "error" not in row] for each in rows))
        errors = [[row.get("error") for row in each] for each in rows]
        assert errors[0] == errors[1]
        if body == "json" and query == "top_k=3":
            codes = [error and error["code"] for error in errors[0]]
            assert codes == [None, "bad_request"], "what is no base64 costs only itself"


def test_three_kinds_of_body_agree(service: Service, repository: Path) -> None:
    model = FRESH.get(service.url + "/v1/models").json()["models"][0]["name"]
    images = [golden_png(repository, model, index) for index in (0, 1)]
    route = f"{service.url}/v1/models/{model}/versions/1/classify"
    raw = [FRESH.post(route, content=image).json()["results"][0] for image in images]
    files = [("file", ("a.png", image, "image/png")) for image in images]
    assert _close(FRESH.post(route, files=files).json()["results"], raw)
    encoded = {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}
    assert _close(FRESH.post(route, json=encoded).json()["results"], raw)


def _close(one: list[dict[str, object]], other: list[dict[str, object]]) -> bool:
    def flat(rows: list[dict[str, object]]) -> list[float]:
        return [p["score"] for row in rows for p in row["predictions"]]  # type: ignore[attr-defined]

    return len(one) == len(other) and bool(np.allclose(flat(one), flat(other), atol=1e-5))


PACKED = gzip.compress(b"hello", mtime=0)
FULL = b'{"images": [%s{"b64": ""}]}'
FORM = {"content-type": "multipart/form-data; boundary=b"}
FILE = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n\r\n'


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "code"),
    [
        ("/v1/classify", b"hello", {}, 415, "unsupported_image_format"),
        ("/v1/classify", b"", {}, 400, "bad_request"),
        ("/v1/classify?top_k=0", b"x", {}, 400, "bad_parameter"),
        ("/v1/classify?top_k=11", b"x", {}, 400, "bad_parameter"),
        ("/v1/classify?top_k=many", b"x", {}, 400, "bad_parameter"),
        ("/v1/models/nobody/classify", b"x", {}, 404, "model_not_found"),
        ("/v1/classify/", b"x", {}, 404, "404"),  # it leads nowhere: the Host header would say where
        (f"/v1/models/{MODEL}/versions/9/classify", b"x", {}, 404, "version_not_found"),
        ("/v1/classify", b"{", {"content-type": "application/json"}, 400, "bad_request"),
        ("/v1/classify", b"[]", {"content-type": "application/json"}, 400, "bad_request"),
        ("/v1/classify", b'{"images": 3}', {"content-type": "application/json"}, 400, "bad_request"),
        ("/v1/classify", b'{"images": [1]}', {"content-type": "application/json"}, 400, "bad_request"),
        ("/v1/classify", b'{"images": [{"b64": null}]}', {"content-type": "Application/JSON"}, 400, "bad_request"),
        ("/v1/classify", FULL % (b'{"b64": ""}, ' * 64), {"content-type": "application/json; x=y"}, 400, "bad_request"),
        ("/v1/classify", FILE * 65 + b"--b--\r\n", FORM, 400, "bad_request"),
        ("/v1/classify", PACKED, {"content-encoding": "X-GZIP"}, 415, "unsupported_image_format"),
        ("/v1/classify", b"x", {"content-type": "multipart/form-data"}, 400, "bad_request"),
        ("/v1/classify", b"x", {"x-request-timeout-ms": "soon"}, 400, "bad_parameter"),
        ("/v1/classify", b"x" * (33 << 20), {}, 413, "body_too_large"),
    ],
)
def test_errors(service: Service, path: str, content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    answer = FRESH.post(service.url + path, content=content, headers=headers | {"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine"


def test_chunked_body_over_the_limit(service: Service) -> None:
    answer = FRESH.post(service.url + "/v1/classify", content=(b"x" * (1 << 20) for _ in range(40)))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_deadline(service: Service, repository: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save(out, "PNG")
    answer = FRESH.post(
        service.url + "/v1/classify", content=out.getvalue(), headers={"x-request-timeout-ms": "1"}, timeout=30
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_metrics_and_stamps(service: Service, repository: Path) -> None:
    answer = FRESH.post(f"{service.url}/v1/models/{MODEL}/classify", content=golden_png(repository, MODEL))
    assert "infer;dur=" in answer.headers["server-timing"]
    assert set(answer.json()["timing_ms"]) == {"decode", "queue", "infer", "total"}
    FRESH.get(service.url + "/no/such/path")
    text = FRESH.get(service.url + "/metrics").text
    assert f'eca_model_ready{{model="{MODEL}",version="1"}} 1.0' in text
    assert f'eca_requests_total{{code="ok",model="{MODEL}",protocol="http"}}' in text
    assert "such" not in text, "an unknown path must not make a series"
    assert FRESH.get(service.url + "/docs").status_code == 200


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not beside the repository")
@pytest.mark.parametrize(
    ("photo", "label"),
    [("n01644900_tailed_frog", "frog"), ("n02111277_Newfoundland", "dog"), ("n03770679_minivan", "automobile")],
)
def test_photographs(service: Service, photo: str, label: str) -> None:
    done = run("eca_service", "classify", "--url", service.url, "--top-k", 1, PHOTOS / f"{photo}.JPEG")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"  {label} [\d.]+%$", done.stdout, re.MULTILINE)


def test_features_on_request(service: Service, repository: Path) -> None:
    """The last feature map, sent through the head that the contract holds, makes the probabilities."""
    for folder in repository.glob("*/1"):
        contract = read(folder, head=True)
        assert contract.head is not None
        images = np.load(folder / "golden.npy")
        tensor = grpc.InferInput("image", images.shape, "UINT8")
        tensor.set_data_from_numpy(images)
        wanted = [grpc.InferRequestedOutput(name) for name in ("probabilities", "features")]
        with grpc.InferenceServerClient(f"127.0.0.1:{service.triton_port}") as client:
            answer = client.infer(contract.name, [tensor], outputs=wanted)
        probabilities, features = answer.as_numpy("probabilities"), answer.as_numpy("features")
        assert features.shape == (len(images), *contract.features_shape)
        weight, bias = (
            np.frombuffer(base64.b64decode(part), "<f4") for part in (contract.head.weight, contract.head.bias)
        )
        logits = features.mean((2, 3)) @ weight.reshape(contract.classes, -1).T + bias
        expected = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(probabilities, expected / expected.sum(1, keepdims=True), atol=1e-5)


def test_slow_body_meets_the_deadline(service: Service) -> None:
    def dribble() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x"
            time.sleep(0.1)

    headers = {"x-request-timeout-ms": "300"}
    answer = FRESH.post(service.url + "/v1/classify", content=dribble(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_impatient_callers_do_not_spoil_the_others(service: Service, repository: Path) -> None:
    image, url = golden_png(repository, MODEL), f"{service.url}/v1/models/{MODEL}/classify?top_k=1"
    expected = FRESH.post(url, content=image).json()["results"]

    def post(index: int) -> httpx.Response:
        headers = {"x-request-timeout-ms": "6"} if index % 2 else {}
        return FRESH.post(url, content=image, headers=headers, timeout=30)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(200)))
    assert {answer.status_code for answer in answers[1::2]} <= {200, 429, 504}
    for answer in answers[::2]:
        assert answer.status_code == 200, answer.text
        assert _close(expected, answer.json()["results"])


def test_memory_of_the_gateway(service: Service) -> None:
    assert service.memory_kib < 300 << 10


def test_command_line_errors(service: Service, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    done = run("eca_service", "classify", "--url", service.url, tmp_path / "note.txt", tmp_path / "missing.jpg")
    assert done.returncode == 1
    assert "unsupported_image_format" in done.stderr
    assert re.search(r"missing\.jpg +unreadable: No such file", done.stderr)
    assert "2 of 2 failed" in done.stderr
    done = run("eca_service", "up", "--repository", tmp_path)
    assert (done.returncode, "eca-build compile" in done.stderr) == (2, True)
    done = run("eca_build", "compile", tmp_path / "note.txt", "--repository", tmp_path / "r")
    assert done.returncode == 2
    assert "note.txt is text that begins with 'hello'" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("weights", DEMO, ids=lambda path: path.stem)
def test_photographs_get_the_right_label(service: Service, weights: Path) -> None:
    """A network of 88 % accuracy gets fewer than 43 of 60 unseen images right once in a hundred thousand times."""
    hits = 0
    for path in sorted((weights.parent / "images").iterdir()):
        answer = FRESH.post(f"{service.url}/v1/models/{weights.stem}/classify?top_k=1", content=path.read_bytes())
        hits += answer.json()["results"][0]["predictions"][0]["label"] == path.name.partition("-")[0]
    assert hits >= 43
