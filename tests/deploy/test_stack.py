"""docker-compose on a CPU, for real: built, up, asked from outside, hurt, and down again. Needs a Docker engine."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from eca_service.client import Failure, classify_file

from deploy.sbom import sbom
from tests.deploy.stack import ROOT, Stack, docker, versions

DOG = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
MODEL = "resnet14-eca"


def await_status(url: str, status: int, timeout_s: float) -> None:
    """Returns once `url` answers with `status`."""
    end = time.monotonic() + timeout_s
    while (found := httpx.get(url, timeout=5).status_code) != status:
        assert time.monotonic() < end, f"{url} still answers {found} after {timeout_s} s"
        time.sleep(0.1)


def test_classifies_a_photograph_over_http(stack: Stack) -> None:
    answer = classify_file(stack.url, DOG)
    assert not isinstance(answer, Failure), answer
    assert answer["model"] == MODEL
    assert answer["results"][0]["predictions"][0]["label"] == "dog"


def test_classifies_a_photograph_over_grpc(stack: Stack) -> None:
    with triton.InferenceServerClient(stack.grpc) as client:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([DOG.read_bytes()], object))
        answer = client.infer(MODEL, [image])
    assert answer.as_numpy("label")[0][0] == b"dog"


@pytest.mark.parametrize("service", ["gateway", "triton"])
def test_runs_with_as_little_as_it_needs(stack: Stack, service: str) -> None:
    container = stack.container(service)
    assert docker("exec", container, "id", "-u") == "10001"
    finds = "for tool in gcc cc pip apt dpkg perl; do command -v $tool; done; python -c 'import torch' 2>&1 | tail -n 1"
    assert docker("exec", container, "sh", "-c", finds).splitlines() == ["ModuleNotFoundError: No module named 'torch'"]
    writes = "touch /opt/eca/x /models/x 2>&1; true"
    assert docker("exec", container, "sh", "-c", writes).count("Read-only file system") == 2
    assert docker("inspect", "-f", "{{.HostConfig.CapDrop}} {{.HostConfig.Privileged}}", container) == "[ALL] false"


def test_gateway_s_image_is_small(stack: Stack) -> None:
    image = docker("inspect", "-f", "{{.Image}}", stack.container("gateway"))
    assert int(docker("image", "inspect", "-f", "{{.Size}}", image)) < 250e6


def test_bill_of_materials_lists_what_was_pinned(stack: Stack) -> None:
    image = docker("inspect", "-f", "{{.Config.Image}}", stack.container("gateway"))
    found = {component["purl"] for component in sbom(image)["components"]}  # type: ignore[attr-defined]
    pins = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    python = {purl.removeprefix("pkg:pypi/").replace("@", "==") for purl in found if purl.startswith("pkg:pypi/")}
    own = f"eca-serve=={versions()['ECA_VERSION']}"
    assert own in python
    assert python - pins == {own}, "everything from the package index is pinned"
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in found)


def test_only_the_gateway_is_open(stack: Stack) -> None:
    assert docker("port", stack.container("prometheus")).startswith("9090/tcp -> 127.0.0.1:")
    assert docker("port", stack.container("triton")) == ""


def test_prometheus_finds_the_request(stack: Stack) -> None:
    assert not isinstance(classify_file(stack.url, DOG), Failure)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = stack.query(f'sum(eca_requests_total{{protocol="http",model="{MODEL}",code="ok"}})')
        if found and float(found[0]["value"][1]) >= 1:
            break
        time.sleep(1)
    else:
        raise AssertionError("the request was not counted within 30 s")
    up = {sample["metric"]["job"]: sample["value"][1] for sample in stack.query("up")}
    assert up == {"gateway": "1"}


def test_doctor_gives_the_verdict(stack: Stack) -> None:
    said = docker("exec", stack.container("gateway"), "eca-serve", "doctor", "--seconds", "1")
    assert f"{MODEL} version 1: resnet14_cifar, fp32, onnx." in said
    assert "The service at http://127.0.0.1:8080 is ready.\nNobody asked for anything in 1 s." in said


def test_survives_the_death_of_triton(stack: Stack) -> None:
    """Killed: 503 with advice, within the deadline, and not ready. Started again: answers, without any help."""
    docker("kill", stack.container("triton"))
    response = httpx.post(stack.url + "/v1/classify", content=DOG.read_bytes(), timeout=30)
    assert response.status_code == 503
    assert response.json()["code"] in {"backend_unavailable", "model_not_ready"}
    assert "Retry-After" in response.headers
    assert httpx.get(stack.url + "/livez").status_code == 200
    await_status(stack.url + "/readyz", 503, 10)
    docker("start", stack.container("triton"))
    print(f"ready {stack.await_ready():.1f} s after Triton's container was started again")
    assert not isinstance(classify_file(stack.url, DOG), Failure)


def test_ends_under_load_without_losing_a_request(stack: Stack) -> None:
    """Asked to end it is no longer ready but answers; callers leave as a balancer would, and none sees an error."""
    gateway, image = stack.container("gateway"), DOG.read_bytes()
    # past the published port's proxy, which accepts connections on behalf of a gateway that has gone
    address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", gateway).split()[0]
    leaving = asyncio.Event()

    async def caller() -> list[int]:
        statuses = []
        while not leaving.is_set():
            async with httpx.AsyncClient(timeout=30) as client:
                answer = await client.post(f"http://{address}:8080/v1/classify", content=image)
            statuses.append(answer.status_code)
        return statuses

    async def drive() -> list[int]:
        callers = [asyncio.create_task(caller()) for _ in range(8)]
        await asyncio.sleep(2)
        await asyncio.to_thread(docker, "kill", "-s", "TERM", gateway)
        async with httpx.AsyncClient(timeout=30) as client:
            while (await client.get(f"http://{address}:8080/readyz")).status_code == 200:
                await asyncio.sleep(0.05)
        leaving.set()
        return [status for statuses in await asyncio.gather(*callers) for status in statuses]

    statuses = asyncio.run(drive())
    assert set(statuses) == {200}
    assert len(statuses) > 8
    docker("wait", gateway)
    assert stack.state("gateway")["ExitCode"] == 0
    docker("start", gateway)
    stack.await_ready()


def test_health_tells_the_truth(stack: Stack) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and stack.state("gateway")["Health"]["Status"] != "healthy":
        time.sleep(1)
    assert stack.state("gateway")["Health"]["Status"] == "healthy"
    docker("stop", stack.container("triton"))
    assert stack.state("triton")["ExitCode"] == 0
    end = time.monotonic() + 40
    while time.monotonic() < end and stack.state("gateway")["Health"]["Status"] == "healthy":
        time.sleep(1)
    assert stack.state("gateway")["Health"]["Status"] == "unhealthy"


def test_goes_down_clean(stack: Stack) -> None:
    """After all others: nothing of the project is left."""
    assert stack.leftovers()
    stack.down()
    assert stack.leftovers() == ""
