"""The whole service as it starts, loses its Triton, and ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as triton_http
from eca_service import leftovers
from eca_service.stopping import ENDING, hung_up
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.conftest import FRESH, MODEL, Service, alive, golden_png, run, start, triton_of
from tests.ports import free_port


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
        while len(listening_at(port)) < 2:  # the first worker tells it, and the second may still be starting
            assert time.monotonic() < end, "one for each worker"
            time.sleep(0.1)
        assert len(listening_at(port)) == 2, "and no more"
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def listening_at(port: int) -> list[list[str]]:
    """The listening sockets of that port, as /proc/net has them."""
    sockets = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    return [one for one in sockets if one[1].endswith(f":{port:04X}") and one[3] == "0A"]


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


@pytest.mark.parametrize("number", [*ENDING, *hung_up()])
def test_nothing_is_left_of_a_start_that_is_ended(
    repository: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's files are there from the first, and who awaits signals comes later."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    running = start(repository, tmp_path)
    end = time.monotonic() + 60
    while not any(temporary.glob("eca-triton-*/backends")):
        assert time.monotonic() < end, running.log.read_text()
        time.sleep(0.001)
    running.process.send_signal(number)
    assert running.process.wait(30) == 0, running.log.read_text()
    assert list(temporary.iterdir()) == []
