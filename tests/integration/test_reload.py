"""New versions, bad ones, rollback, new and removed models: followed by a running service that loses no request."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from eca_service import metrics
from eca_service.readiness import FOLLOW_EVERY_S

from tests.integration.callers import call
from tests.integration.conftest import FRESH, MODEL, OTHER, Service, golden_png, ready, run, start


def publish(repository: Path, version: int, damage: Callable[[dict[str, Any], Path], None] | None = None) -> Path:
    """A copy of version 1, published as another by a rename, as the build does; `damage` may spoil it before."""
    home = repository / MODEL
    staged = repository.parent / "staged"
    shutil.copytree(home / "1", staged)
    contract = json.loads((staged / "contract.json").read_text())
    contract["version"] = version
    if damage:
        damage(contract, staged)
    (staged / "contract.json").write_text(json.dumps(contract))
    return staged.rename(home / str(version))


def served(service: Service) -> int:
    """The version that callers are told of."""
    return int(FRESH.get(f"{service.url}/v1/models/{MODEL}").json()["version"])


def until(condition: Callable[[], bool], service: Service, timeout_s: float = 20) -> None:
    """Waits for `condition`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.05)


def loaded(service: Service) -> list[str]:
    """The model's versions that Triton has ready."""
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{service.triton_port}") as client:
        index = client.get_model_repository_index().models
        return sorted(m.version for m in index if m.name == MODEL and m.state == "READY")


def series(service: Service, metric: str) -> dict[int, float]:
    """The model's versions that a gauge has, and their values."""
    found = metrics.parse(FRESH.get(f"{service.url}/metrics").text)
    return {int(s.labels["version"]): s.value for s in found if s.name == metric and s.labels["model"] == MODEL}


@pytest.fixture(scope="module")
def changing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path, list[str]]]:
    """A service whose repository may be changed, under load all the while: with the codes that the callers got."""
    folder = tmp_path_factory.mktemp("reload")
    own = folder / "repository"
    shutil.copytree(repository / MODEL, own / MODEL)
    service = start(own, folder, retire_ms=300)
    ended, codes = threading.Event(), []
    image = golden_png(repository, MODEL)

    def drive(protocol: str) -> None:
        while not ended.is_set():
            codes.append(call(protocol, service, MODEL, [image, image]).code)

    drivers = [threading.Thread(target=drive, args=(protocol,)) for protocol in ("rest", "grpc")]
    try:
        service.await_ready()
        for driver in drivers:
            driver.start()
        yield service, own, codes
    finally:
        ended.set()
        for driver in drivers:
            driver.join()
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)


def test_a_new_version_takes_over(changing: tuple[Service, Path, list[str]]) -> None:
    service, repository, codes = changing
    publish(repository, 2)
    until(lambda: served(service) == 2, service)
    until(lambda: loaded(service) == ["2"], service)
    assert f'eca_model_ready{{model="{MODEL}",version="1"}}' not in FRESH.get(f"{service.url}/metrics").text
    before = len(codes)
    until(lambda: len(codes) > before + 4, service)
    assert set(codes) == {"ok"}


def _other_answers(contract: dict[str, Any], staged: Path) -> None:
    answers = np.roll(np.asarray(contract["golden"]["probabilities"]), 1, axis=1)
    contract["golden"]["probabilities"] = answers.tolist()


def _no_engine(contract: dict[str, Any], staged: Path) -> None:
    (staged / "model.onnx").write_bytes(b"not a network")
    contract["engine_sha256"] = hashlib.sha256(b"not a network").hexdigest()


def _another_s_engine(contract: dict[str, Any], staged: Path) -> None:
    """With answers that the golden ones do not tell apart."""
    with (staged / "model.onnx").open("ab") as engine:
        engine.write(b"\x72\x00")  # ONNX: no metadata


def _too_few_answers(contract: dict[str, Any], staged: Path) -> None:
    contract["golden"]["probabilities"].pop()


@pytest.mark.parametrize(
    ("version", "damage"), [(3, _other_answers), (4, _no_engine), (5, _another_s_engine), (6, _too_few_answers)]
)
def test_a_bad_version_is_refused(
    changing: tuple[Service, Path, list[str]], version: int, damage: Callable[[dict[str, Any], Path], None]
) -> None:
    service, repository, codes = changing
    publish(repository, version, damage)
    until(lambda: f"version {version} is refused" in service.log.read_text(), service)
    until(lambda: loaded(service) == ["2"], service)
    assert served(service) == 2
    assert FRESH.get(f"{service.url}/readyz").status_code == 200
    assert series(service, "eca_model_ready") == {2: 1}, "which has only what serves"
    assert series(service, "eca_model_refused")[version] == 1
    assert set(codes) == {"ok"}


def test_a_refused_version_is_forgotten_with_its_folder(changing: tuple[Service, Path, list[str]]) -> None:
    service, repository, codes = changing
    folder = publish(repository, 7, _other_answers)
    until(lambda: 7 in series(service, "eca_model_refused"), service)
    shutil.rmtree(folder)
    until(lambda: 7 not in series(service, "eca_model_refused"), service)
    assert series(service, "eca_model_ready") == {2: 1}
    assert set(codes) == {"ok"}


def test_rollback_by_one_command(changing: tuple[Service, Path, list[str]]) -> None:
    service, repository, codes = changing
    image = golden_png(repository, MODEL)
    done = run("eca_service", "rollback", MODEL, "--to", 1, "--repository", repository)
    assert done.returncode == 0, done.stderr
    until(lambda: served(service) == 1, service)
    assert call("rest", service, MODEL, [image], version=1).code == "ok"
    assert call("rest", service, MODEL, [image], version=2).code == "version_not_found"
    assert run("eca_service", "rollback", MODEL, "--newest", "--repository", repository).returncode == 0
    until(lambda: served(service) == 2, service)  # the newest that is not refused
    assert set(codes) == {"ok"}


def test_rollback_s_errors(changing: tuple[Service, Path, list[str]], tmp_path: Path) -> None:
    _, repository, _ = changing
    for arguments, sentence in (
        ((MODEL, "--to", 9), f"{MODEL} has the versions 1, 2, 3, 4, 5, 6"),
        (("absent",), "there is no model 'absent'"),
        ((MODEL, "--to", 1, "--newest"), "not both"),
    ):
        done = run("eca_service", "rollback", *arguments, "--repository", repository)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_models_come_and_go(changing: tuple[Service, Path, list[str]], repository: Path) -> None:
    service, own, codes = changing
    image = golden_png(repository, OTHER)
    assert call("rest", service, OTHER, [image]).code == "model_not_found"
    shutil.copytree(repository / OTHER, own.parent / OTHER)
    (own.parent / OTHER).rename(own / OTHER)
    until(lambda: call("rest", service, OTHER, [image]).code == "ok", service)
    (own / OTHER).rename(own.parent / OTHER)
    until(lambda: call("rest", service, OTHER, [image]).code == "model_not_found", service)
    assert set(codes) == {"ok"}


def test_what_is_copied_bit_by_bit_is_served_once_it_is_whole(
    changing: tuple[Service, Path, list[str]], repository: Path
) -> None:
    service, own, codes = changing
    folder = publish(own, 8, lambda _, staged: os.truncate(staged / "model.onnx", 1000))
    shutil.copytree(repository / OTHER / "1", own / OTHER / "1")
    for refused in (f"{MODEL} version 8", f"{OTHER} version 1"):
        until(lambda refused=refused: f"{refused} is refused" in service.log.read_text(), service)  # type: ignore[misc]
    shutil.copyfile(own / MODEL / "1" / "model.onnx", folder / "model.onnx")
    for file in ("config.pbtxt", "labels.txt"):
        shutil.copyfile(repository / OTHER / file, own / OTHER / file)
    until(lambda: served(service) == 8, service)
    until(lambda: call("rest", service, OTHER, [golden_png(repository, OTHER)]).code == "ok", service)
    assert 8 not in series(service, "eca_model_refused")
    assert set(codes) == {"ok"}
    shutil.rmtree(own / OTHER)
    shutil.rmtree(folder)
    until(lambda: served(service) == 2, service)


def test_a_served_version_that_is_deleted_loses_no_request(changing: tuple[Service, Path, list[str]]) -> None:
    """Triton unloads it as soon as it has the one before, which is not golden yet."""
    service, repository, codes = changing
    for _ in range(3):
        folder = publish(repository, 9)
        until(lambda: loaded(service) == ["9"], service)
        shutil.rmtree(folder)
        until(lambda: served(service) == 2, service)
        before = len(codes)
        until(lambda before=before: len(codes) > before + 4, service)  # type: ignore[misc]
    assert set(codes) == {"ok"}


def test_what_was_golden_is_not_left_for_an_older_version(changing: tuple[Service, Path, list[str]]) -> None:
    """Its engine may be well and its golden file be back in a moment."""
    service, repository, _ = changing
    file = repository / MODEL / "2" / "golden.npy"
    file.rename(repository.parent / file.name)
    try:
        until(lambda: FRESH.get(f"{service.url}/readyz").status_code == 503, service)
        assert series(service, "eca_model_ready") == {2: 0}
        time.sleep(2 * FOLLOW_EVERY_S)
        assert served(service) == 2
    finally:
        (repository.parent / file.name).rename(file)
    service.await_ready()
    assert series(service, "eca_model_ready") == {2: 1}


def test_a_restart_passes_over_a_bad_newest_version(changing: tuple[Service, Path, list[str]], tmp_path: Path) -> None:
    """As soon as that was refused, not when the repository is followed next, by when it may be tried again."""
    _, repository, _ = changing
    with ready(
        repository, tmp_path, before="from eca_service import readiness; readiness.FOLLOW_EVERY_S = 60"
    ) as service:
        assert served(service) == 2
