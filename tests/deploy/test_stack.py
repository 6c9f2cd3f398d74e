"""docker-compose on a CPU, for real: built, up, asked from outside, hurt, and down again. Needs a Docker engine."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton
import trustme
from eca_service.client import Client, Retry
from eca_service.keys import make
from tritonclient.utils import InferenceServerException

from tests.deploy.stack import MODEL, ROOT, Stack, docker, logs, versions

DOG = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
PLAIN = ssl.create_default_context()  # made once: for each client it takes longer than a request


def await_status(url: str, status: int, timeout_s: float) -> None:
    """Returns once `url` answers with `status`."""
    end = time.monotonic() + timeout_s
    while (found := httpx.get(url, timeout=5).status_code) != status:
        assert time.monotonic() < end, f"{url} still answers {found} after {timeout_s} s"
        time.sleep(0.1)


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Returns once it holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.1)


def await_health(container: str, health: str, timeout_s: float) -> None:
    """Returns once the engine says `health` of the container."""
    end = time.monotonic() + timeout_s
    while (found := docker("inspect", "-f", "{{.State.Health.Status}}", container)) != health:
        assert time.monotonic() < end, f"still {found} after {timeout_s} s: {logs(container)[-2000:]}"
        time.sleep(0.5)


def classify(stack: Stack) -> None:
    """Fails where the photograph of a dog gets no answer at once."""
    with Client(stack.url, retry=Retry(attempts=1)) as client:
        assert client.classify(DOG).predictions


def test_classifies_a_photograph_over_http(stack: Stack) -> None:
    with Client(stack.url) as client:
        answer = client.classify(DOG)
    assert (answer.model, answer.best.label) == (MODEL, "dog")


def test_classifies_a_photograph_over_grpc(stack: Stack) -> None:
    with triton.InferenceServerClient(stack.grpc) as client:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([DOG.read_bytes()], object))
        answer = client.infer(MODEL, [image])
    assert answer.as_numpy("label")[0][0] == b"dog"


def test_only_the_gateway_is_open(stack: Stack) -> None:
    assert docker("port", stack.container("prometheus")).startswith("9090/tcp -> 127.0.0.1:")
    assert docker("port", stack.container("triton")) == ""


def test_prometheus_finds_the_request(stack: Stack) -> None:
    classify(stack)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = stack.query(f'sum(eca_requests_total{{protocol="http",model="{MODEL}",code="ok"}})')
        if found and float(found[0]["value"][1]) >= 1:
            break
        time.sleep(1)
    else:
        raise AssertionError("the request was not counted within 30 s")
    up = [(sample["metric"]["job"], sample["value"][1]) for sample in stack.query("up")]
    assert up == [("eca-gateway", "1")]


def test_doctor_gives_the_verdict(stack: Stack) -> None:
    said = docker("exec", stack.container("gateway"), "eca-serve", "doctor", "--seconds", "1")
    assert f"{MODEL} version 1: resnet14_cifar, fp32, onnx." in said
    assert "The service at http://127.0.0.1:8080 is ready.\nThere were no requests in " in said


def test_the_runbooks_commands_work(stack: Stack) -> None:
    """As they stand there: all that only look, of containers that run, and one that does not."""
    pages = "".join(page.read_text() for page in sorted((ROOT / "deploy" / "runbooks").glob("*.md")))
    commands = sorted(set(re.findall(r"`docker compose ([^`]+)`", pages)))
    looking = [words for words in map(shlex.split, commands) if {"ps", "logs", "exec"} & set(words)]
    assert len(looking) >= 6
    for words in looking:
        stack.compose(*(["exec", "-T", *words[1:]] if words[0] == "exec" else words))
    docker("stop", stack.container("gateway"))
    shown = stack.compose(*next(words for words in looking if words[:2] == ["ps", "-a"] and "gateway" in words))
    docker("start", stack.container("gateway"))
    assert re.search(r"Exit", shown), "the one that is looked for is listed"
    stack.await_ready()


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
    classify(stack)


def test_a_second_triton_is_found(stack: Stack) -> None:
    """The engine's own DNS gives its address, and it has images within five seconds of being ready."""
    gateway = stack.container("gateway")
    stack.compose("up", "-d", "--no-deps", "--scale", "triton=2", "--no-recreate", "triton")
    first, second = sorted(stack.containers("triton"), key=lambda one: docker("inspect", "-f", "{{.Created}}", one))
    await_health(second, "healthy", 60)
    address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", second)
    began = time.monotonic()
    while f"{address}:8001" not in logs(gateway).rpartition("images go to the Tritons at")[2]:
        assert time.monotonic() < began + 5, "the gateway did not find it"
        classify(stack)
    docker("stop", first)
    for _ in range(20):
        classify(stack)  # the second serves alone
    docker("start", first)
    docker("rm", "-f", second)
    stack.await_ready()


def test_the_gateway_is_upgraded_without_a_failed_request(stack: Stack) -> None:
    """Another version is built, and the gateways behind the balancer are replaced in turn, while callers ask on."""
    upgraded = {"ECA_VERSION": f"{versions()['ECA_VERSION']}-next"}
    stack.compose("build", "gateway", timeout_s=600, **upgraded)
    stack.compose("build", "balancer", timeout_s=600)
    stack.compose("up", "-d", "--no-deps", "gateway-b", "balancer")
    await_health(stack.container("gateway-b"), "healthy", 60)
    await_health(stack.container("balancer"), "healthy", 60)
    until(lambda: len(stack.query('up{job="eca-gateway"} == 1')) == 2, 30)
    before = {name: stack.container(name) for name in ("gateway", "gateway-b")}
    ended, codes = threading.Event(), Counter[str]()

    def over_http(keep: bool) -> None:
        image = DOG.read_bytes()
        while not ended.is_set():
            with httpx.Client(timeout=30, verify=PLAIN) as client:
                for _ in range(50 if keep else 1):
                    try:
                        codes[f"http {client.post(stack.balanced + '/v1/classify', content=image).status_code}"] += 1
                    except httpx.HTTPError as error:
                        codes[repr(error)] += 1
                    if keep:
                        ended.wait(0.1)

    def over_grpc() -> None:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([DOG.read_bytes()], object))
        with triton.InferenceServerClient(stack.balanced_grpc) as client:
            while not ended.is_set():
                try:
                    codes[f"grpc {client.infer(MODEL, [image]).as_numpy('label')[0][0].decode()}"] += 1
                except InferenceServerException as error:
                    codes[f"grpc {error}"] += 1

    callers = [threading.Thread(target=over_http, args=(keep,)) for keep in (True, False, False)]
    callers.append(threading.Thread(target=over_grpc))
    for caller in callers:
        caller.start()
    try:
        stack.upgrade(**upgraded)
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    print(f"answers while both gateways were replaced: {dict(codes)}")
    assert codes.keys() == {"http 200", "grpc dog"}, codes
    assert min(codes.values()) > 20
    for name, container in before.items():
        assert stack.container(name) != container
        assert docker("inspect", "-f", "{{.Config.Image}}", stack.container(name)).endswith("-next")
    stack.compose("rm", "-sf", "gateway-b", "balancer")
    stack.compose("up", "-d", "--no-deps", "gateway")
    stack.await_ready()
    docker("image", "rm", f"eca-serve/gateway:{upgraded['ECA_VERSION']}")


def test_a_gateway_that_is_gone_is_seen_and_replaced_first(stack: Stack) -> None:
    """Not in DNS it is no target of Prometheus'; the balancer tells, and upgrade.sh begins where nothing serves."""
    stack.compose("up", "-d", "--no-deps", "gateway-b", "balancer")
    await_health(stack.container("gateway-b"), "healthy", 60)
    await_health(stack.container("balancer"), "healthy", 60)
    missing = 'haproxy_server_status{proxy="http",server="gateway",state="UP"} == 0'
    until(lambda: len(stack.query('up{job="eca-balancer"} == 1')) == 1, 30)
    assert stack.query(missing) == []
    docker("stop", stack.container("gateway"))
    until(lambda: len(stack.query(missing)) == 1, 30)
    stack.upgrade()
    until(lambda: stack.query(missing) == [], 30)
    stack.compose("rm", "-sf", "gateway-b", "balancer")
    stack.await_ready()


def test_keys_and_tls_are_files_that_may_change(stack: Stack, tmp_path: Path) -> None:
    """Callers need a key over TLS; a second key is added, the first removed, and nobody restarts anything."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    (tmp_path / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    first, line = make("team-a")
    (tmp_path / "keys").write_text(line + "\n")
    for file in tmp_path.iterdir():
        os.chown(file, 10001, 10001)
        file.chmod(0o400)
    tmp_path.chmod(0o755)
    settings = {
        "ECA_SECRETS": str(tmp_path),
        "ECA_API_KEYS_FILE": "/run/secrets/keys",
        "ECA_TLS_CERT": "/run/secrets/tls.crt",
        "ECA_TLS_KEY": "/run/secrets/tls.key",
    }
    stack.compose("up", "-d", "--no-deps", "gateway", timeout_s=120, **settings)
    try:
        await_health(stack.container("gateway"), "healthy", 60)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        url = stack.url.replace("http://", "https://") + "/v1/classify"

        def status(key: str | None) -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return httpx.post(url, content=DOG.read_bytes(), headers=headers, verify=context, timeout=30).status_code

        assert (status(None), status("eca_wrong"), status(first)) == (401, 401, 200)
        second, line = make("team-a")
        with (tmp_path / "keys").open("a") as keys:
            keys.write(line + "\n")
        until(lambda: status(second) == 200, 5)
        assert status(first) == 200, "both hold while callers change"
        replacement = tmp_path / "keys.new"
        replacement.write_text(line + "\n")
        os.chown(replacement, 10001, 10001)
        replacement.chmod(0o400)
        replacement.replace(tmp_path / "keys")
        until(lambda: status(first) == 401, 5)
        assert status(second) == 200
        for secret in (first, second):
            assert secret not in logs(stack.container("gateway"))
    finally:
        stack.compose("up", "-d", "--no-deps", "gateway")
        stack.await_ready()


def test_the_balancer_takes_over_a_renewed_certificate(stack: Stack, tmp_path: Path) -> None:
    """When it is told to, as deploy/secrets/README.md says."""
    pem, port = tmp_path / "balancer.pem", stack.ports["ECA_BALANCED_HTTP_PORT"]

    def renew() -> None:
        issued = trustme.CA().issue_cert("localhost")
        pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        os.chown(pem, 10001, 10001)

    renew()
    tmp_path.chmod(0o755)
    settings: Any = {"ECA_SECRETS": str(tmp_path), "ECA_BALANCER_TLS": "/run/secrets/balancer.pem"}
    stack.compose("up", "-d", "--no-deps", "balancer", **settings)
    try:
        await_health(stack.container("balancer"), "healthy", 60)
        served = ssl.get_server_certificate(("127.0.0.1", port))
        renew()
        stack.compose("kill", "-s", "USR2", "balancer", **settings)
        until(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != served, 10)
        assert stack.state("balancer")["Status"] == "running"
    finally:
        stack.compose("rm", "-sf", "balancer")


def test_ends_under_load_without_losing_a_request(stack: Stack) -> None:
    """Asked to end it is no longer ready but answers; callers leave as a balancer would, and none sees an error."""
    gateway, image = stack.container("gateway"), DOG.read_bytes()
    # past the published port's proxy, which accepts connections on behalf of a gateway that has gone
    address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", gateway).split()[0]
    leaving = asyncio.Event()

    async def caller() -> list[int]:
        statuses = []
        while not leaving.is_set():
            async with httpx.AsyncClient(timeout=30, verify=PLAIN) as client:
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
    await_health(stack.container("gateway"), "healthy", 30)
    docker("stop", stack.container("triton"))
    assert stack.state("triton")["ExitCode"] == 0
    await_health(stack.container("gateway"), "unhealthy", 40)


def test_goes_down_clean(stack: Stack) -> None:
    """After all others: nothing of the project is left."""
    assert stack.leftovers()
    stack.down()
    assert stack.leftovers() == ""
