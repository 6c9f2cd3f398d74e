"""The whole service: gateway and the real Triton Inference Server."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as triton_http
from eca_service import leftovers
from eca_service.contract import read
from eca_service.stopping import ENDING, hung_up
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from tests.integration.conftest import (
    DEMO,
    FRESH,
    MODEL,
    ROOT,
    Service,
    alive,
    build,
    golden_png,
    run,
    start,
    triton_of,
)
from tests.load.photographs import PHOTOS
from tests.ports import free_port

NETWORK = ROOT / "build" / "demo" / f"{MODEL}.safetensors"


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


@pytest.mark.parametrize("variable", ["ECA_HTTP_PORT", "ECA_GRPC_PORT", "ECA_TRITON_GRPC_PORT"])
def test_port_in_use_is_a_sentence(service: Service, repository: Path, variable: str) -> None:
    used = {
        "ECA_HTTP_PORT": service.url.rpartition(":")[2],
        "ECA_GRPC_PORT": str(service.grpc_port),
        "ECA_TRITON_GRPC_PORT": str(service.triton_port),
    }
    taken = used[variable]
    ports = {name: str(free_port()) for name in used} | {variable: taken}
    done = run("eca_service", "up", "--repository", repository, environment=ports)
    assert done.returncode == 2
    assert f"127.0.0.1:{taken}" in done.stderr
    assert variable in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_engine_is_told_and_the_others_serve(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / MODEL, tmp_path / "r" / MODEL)
    shutil.copytree(repository / MODEL, tmp_path / "r" / "broken")
    contract = tmp_path / "r" / "broken" / "1" / "contract.json"
    contract.write_text(contract.read_text().replace(f'"name": "{MODEL}"', '"name": "broken"'))
    config = tmp_path / "r" / "broken" / "config.pbtxt"
    config.write_text(config.read_text().replace(MODEL, "broken"))
    (tmp_path / "r" / "broken" / "1" / "model.onnx").unlink()
    running = start(tmp_path / "r", tmp_path)
    try:
        image, end = golden_png(repository, MODEL), time.monotonic() + 30
        running.await_ready("/livez")
        while (answer := FRESH.post(f"{running.url}/v1/models/{MODEL}/classify", content=image)).status_code != 200:
            assert time.monotonic() < end, answer.text
            time.sleep(0.2)
        while "model.onnx" not in (ready := FRESH.get(running.url + "/readyz")).json()["reasons"]["broken"]:
            assert time.monotonic() < end, ready.text
            time.sleep(0.2)
        assert (ready.status_code, list(ready.json()["reasons"])) == (503, ["broken"])
        answer = FRESH.post(running.url + "/v1/models/broken/classify", content=image)
        assert (answer.status_code, answer.json()["code"]) == (503, "model_not_ready")
        assert "broken/1/model.onnx" in answer.json()["detail"]
        assert str(tmp_path) not in ready.text + answer.text, "which is nobody's business but the log's"
        assert f"{tmp_path}/r/broken/1/model.onnx" in running.log.read_text()
        told = FRESH.get(running.url + "/v2/health/ready")
        assert (told.status_code, told.json(), "retry-after" in told.headers) == (503, {"ready": False}, True)
        http = triton_http.InferenceServerClient(running.url.removeprefix("http://"))
        for client in (http, grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}")):
            with client:
                assert (client.is_server_live(), client.is_server_ready()) == (True, False)
                assert (client.is_model_ready(MODEL), client.is_model_ready("broken")) == (True, False)
        with running.channel() as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def test_a_free_port_is_told_and_is_every_worker_s(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path, workers=2, http_port=0, grpc_port=0)
    told = re.compile(r"ECA Serve is ready: (http://\S+) and gRPC on (\S+)")
    try:
        end = time.monotonic() + 60
        while (found := told.search(running.log.read_text())) is None:
            assert time.monotonic() < end, running.log.read_text()
            time.sleep(0.1)
        assert FRESH.get(f"{found[1]}/readyz").status_code == 200
        port = int(found[2].rpartition(":")[2])
        sockets = [
            line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()
        ]
        listening = [one for one in sockets if one[1].endswith(f":{port:04X}") and one[3] == "0A"]
        assert len(listening) == 2, "one for each worker"
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


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
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    kibibytes = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert kibibytes < 300 << 10


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
    assert "damaged or no checkpoint" in done.stderr
    assert not (tmp_path / "r").exists()


def test_building_again_changes_nothing(repository: Path) -> None:
    done = build(repository)
    assert (done.returncode, done.stdout.count("nothing changed")) == (0, len(DEMO))
    assert [p.name for p in (repository / MODEL).iterdir() if p.is_dir()] == ["1"]


def test_building_again_replaces_a_damaged_engine(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / MODEL, tmp_path / "r" / MODEL)
    with (tmp_path / "r" / MODEL / "1" / "model.onnx").open("r+b") as engine:
        engine.seek(100_000)
        engine.write(bytes(7000))
    done = build(tmp_path / "r", MODEL)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "r" / MODEL).iterdir() if p.is_dir()) == ["1", "2"]


def test_the_figures_are_of_real_images(repository: Path) -> None:
    for contract in repository.glob("*/1/contract.json"):
        verification = json.loads(contract.read_text())["verification"]
        assert (verification["source"], verification["images"], verification["top1_agreement"]) == ("images/", 60, 1)


@pytest.mark.parametrize("weights", DEMO, ids=lambda path: path.stem)
def test_photographs_get_the_right_label(service: Service, weights: Path) -> None:
    """A network of 88 % accuracy gets fewer than 43 of 60 unseen images right once in a hundred thousand times."""
    hits = 0
    for path in sorted((weights.parent / "images").iterdir()):
        answer = FRESH.post(f"{service.url}/v1/models/{weights.stem}/classify?top_k=1", content=path.read_bytes())
        hits += answer.json()["results"][0]["predictions"][0]["label"] == path.name.partition("-")[0]
    assert hits >= 43


def test_build_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", "compile", str(NETWORK)]
    process = subprocess.Popen([*command, "--repository", str(repository)], start_new_session=True)
    staged = tmp_path / ".r.staging" / "1" / "model.onnx"
    end = time.monotonic() + 60
    while not staged.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(repository.iterdir()) == []
    done = run("eca_build", "compile", NETWORK, "--repository", repository)
    assert (done.returncode, done.stderr) == (0, ""), "a build in a pipe is quiet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_wrong_number_of_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    done = run("eca_build", "compile", DEMO[0], "--labels", tmp_path / "labels.txt", "--repository", tmp_path / "r")
    assert done.returncode == 2
    assert "has 2 labels, the checkpoint has 10 classes" in done.stderr
    assert not (tmp_path / "r").exists()


def test_triton_killed_comes_back(service: Service, repository: Path) -> None:
    """Also where a cleaner of /tmp has taken its files."""
    image, triton = golden_png(repository, MODEL), triton_of(service)
    told = service.log.read_text()
    shutil.rmtree(Path(f"/proc/{triton}/cwd").readlink().parent)
    os.kill(triton, signal.SIGKILL)
    answer = FRESH.post(service.url + "/v1/classify", content=image)
    assert answer.status_code in {200, 503}, answer.text
    codes = {answer.status_code}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        answer = FRESH.post(service.url + "/v1/classify", content=image)
        codes.add(answer.status_code)
        if answer.status_code == 200 and 503 in codes:
            break
        assert FRESH.get(service.url + "/livez").status_code == 200
        time.sleep(0.05)
    assert codes == {200, 503}
    service.await_ready()
    absent = '"level": "warning", "logger": "eca_service.readiness", "message": "no model is ready'
    assert absent not in told, "it was only about to start"
    log = service.log.read_text()
    assert absent in log.removeprefix(told)
    assert f'"message": "{MODEL} is not ready: Triton Inference Server is not' not in log, "once for all models"


@pytest.mark.parametrize("backend", ["compiled", "python"])
@pytest.mark.parametrize("number", [*ENDING, signal.SIGKILL, *hung_up()])
def test_nothing_is_left(
    repository: Path, tmp_path: Path, number: signal.Signals, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Triton, nor of the processes that its backend in Python has."""
    if backend == "python":
        monkeypatch.setenv("CXX", "")
    running = start(repository, tmp_path)
    running.await_ready()
    pids = running.children()
    assert len(pids) >= (2 if backend == "python" else 1)
    running.process.send_signal(number)
    assert running.process.wait(30) == (-number if number == signal.SIGKILL else 0), running.log.read_text()
    end = time.monotonic() + 10
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive(pids) == []
    leftovers.remove("triton")  # what the next start does: only a killed service leaves anything to remove
    assert list(Path(tempfile.gettempdir()).glob(f"eca-triton-{running.process.pid}-*")) == []
    assert list(Path("/dev/shm").glob(f"eca_triton_{running.process.pid}_*")) == []
