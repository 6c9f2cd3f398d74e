"""`eca-serve doctor` on a running service: ready, asked, refused, gone, stale."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.callers import call
from tests.integration.conftest import FRESH, MODEL, Service, ending, golden_png, run, start
from tests.unit.test_triton_server import needs_ipv6


def doctor(service: Service, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("eca_service", "doctor", "--url", service.url, *arguments)


@contextmanager
def asked(question: Callable[[], object], callers: int) -> Iterator[None]:
    """While the block runs, so many callers ask all the time."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            question()

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_says_that_all_is_well(service: Service, repository: Path) -> None:
    environment = {
        "ECA_HTTP_PORT": service.url.rpartition(":")[2],
        "ECA_REPOSITORY": str(repository),
        "ECA_TRITON_URL": f"127.0.0.1:{service.triton_port}",
    }
    done = run("eca_service", "doctor", "--seconds", 0.2, environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"The service at {service.url} is ready.\nThere were no requests" in done.stdout


@needs_ipv6
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_on_every_address(repository: Path, tmp_path: Path, workers: int) -> None:
    running = start(repository, tmp_path, host="::", triton_host="::1", workers=workers)
    with ending(running):
        for protocol in ("rest", "grpc"):  # of IPv4
            assert call(protocol, running, MODEL, [golden_png(repository, MODEL)]).code == "ok"
        port = running.url.rpartition(":")[2]
        running.url = f"http://[::1]:{port}"
        assert call("rest", running, MODEL, [golden_png(repository, MODEL)]).code == "ok"
        environment = {"ECA_HOST": "::", "ECA_HTTP_PORT": port, "ECA_REPOSITORY": str(repository)}
        done = run("eca_service", "doctor", "--seconds", 0.1, environment=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"The service at {running.url} is ready." in done.stdout
        assert f"{running.url}/docs" in running.log.read_text(), "one that can be opened"


def test_says_why_batches_hold_one_image(service: Service, repository: Path) -> None:
    image = golden_png(repository, MODEL)
    with asked(lambda: call("rest", service, MODEL, [image]), callers=1):
        done = doctor(service, "--seconds", 5)
    assert f"{MODEL}: batches hold one image" in done.stdout, done.stdout
    assert " 1.0 images in a batch." in done.stdout
    assert done.returncode == 0, done.stderr


def test_says_what_is_refused(service: Service, repository: Path) -> None:
    image = golden_png(repository, MODEL)
    with asked(lambda: call("rest", service, MODEL, [image] * 60, timeout_ms=60), callers=6):
        done = doctor(service, "--seconds", 3)
    assert done.returncode == 1
    assert "requests were refused in" in done.stderr, done.stderr + done.stdout


def test_says_which_version_is_stale(service: Service, repository: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(repository, newer)
    shutil.copytree(newer / MODEL / "1", newer / MODEL / "2")
    contract = newer / MODEL / "2" / "contract.json"
    contract.write_text(contract.read_text().replace('"version": 1', '"version": 2', 1))
    environment = {
        "ECA_HTTP_PORT": service.url.rpartition(":")[2],
        "ECA_REPOSITORY": str(newer),
        "ECA_TRITON_URL": "127.0.0.1:9",
    }
    done = run("eca_service", "doctor", "--seconds", 0.1, environment=environment)
    assert done.returncode == 1
    assert f"{MODEL} should be served in version 2, but the service serves 1" in done.stderr
    assert "the Triton at 127.0.0.1:9 does not take connections" in done.stderr


def test_says_that_nobody_is_there() -> None:
    done = run("eca_service", "doctor", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("Wrong: no service answers at http://127.0.0.1:9 (")
    assert done.stderr.strip().endswith("`eca-serve up` starts one")


def test_metrics_are_parsed(service: Service) -> None:
    from eca_service import metrics

    found = metrics.parse(FRESH.get(f"{service.url}/metrics").text)
    assert {sample.labels["model"] for sample in found if sample.name == "eca_model_ready"} >= {MODEL}
