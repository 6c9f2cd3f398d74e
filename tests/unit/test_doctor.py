"""What doctor finds in a repository, one damage after the other, while no service runs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from eca_build.triton_config import config
from eca_service import doctor as examine
from eca_service import logs
from eca_service.cli import main
from eca_service.registry import Registry

from tests.unit.test_contract import CONTRACT

CONFIG = config(
    name="m",
    engine="onnx",
    max_batch=CONTRACT.max_batch,
    crop=CONTRACT.preprocessing.crop,
    classes=CONTRACT.classes,
    features_shape=CONTRACT.features_shape,
    gates=CONTRACT.gates,
)


@pytest.fixture(autouse=True)
def log_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command would silence that of all tests that follow in this process."""
    monkeypatch.setattr(logs, "start", lambda *_: None)


def publish(repository: Path, **changes: object) -> Path:
    """One sound version of the model `m`; its folder."""
    written = {"engine_sha256": hashlib.sha256(b"engine").hexdigest()} | changes
    golden = CONTRACT.golden.model_copy(update={"sha256": hashlib.sha256(b"golden").hexdigest()})
    contract = CONTRACT.model_copy(update={"golden": golden} | written)
    folder = repository / "m" / str(contract.version)
    folder.mkdir(parents=True)
    (folder / "contract.json").write_text(contract.model_dump_json())
    (folder / "model.onnx").write_bytes(b"engine")
    (folder / "golden.npy").write_bytes(b"golden")
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    return folder


def doctor(repository: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """What it says of the repository: what is wrong, and all the rest."""
    done = CliRunner().invoke(main, ["doctor", "--repository", str(repository), "--http-port", "1", *arguments])
    assert done.exit_code == 1, "no service runs"
    lines = [line for line in done.output.splitlines() if "no service answers" not in line]
    wrong = [line.removeprefix("Wrong: ") for line in lines if line.startswith("Wrong: ")]
    return wrong, [line for line in lines if not line.startswith("Wrong: ")]


def test_a_sound_repository(tmp_path: Path) -> None:
    publish(tmp_path)
    wrong, said = doctor(tmp_path)
    assert wrong == []
    assert "m version 1: resnet20_cifar, fp32, onnx." in said


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda one: (one / "model.onnx").unlink(), "m version 1 cannot be served: {one}/model.onnx cannot be read"),
        (lambda one: (one / "model.onnx").write_bytes(b"eng"), "{one}/model.onnx is not the file that the build wrote"),
        (lambda one: (one / "golden.npy").unlink(), "{one}/golden.npy cannot be read"),
        (lambda one: (one / "golden.npy").write_bytes(b"x"), "{one}/golden.npy is not the file that the build wrote"),
        (lambda one: (one.parent / "config.pbtxt").unlink(), "{home}/config.pbtxt cannot be read"),
        (lambda one: (one.parent / "config.pbtxt").write_text("{"), "{home}/config.pbtxt cannot be read"),
        (
            lambda one: (one.parent / "config.pbtxt").write_text(""),
            "{home}/config.pbtxt has image as None, the contract",
        ),
        (lambda one: one.rename(one.parent / "5"), "{home}/5 is not served: its contract is of m version 1"),
        (lambda one: one.parent.rename(one.parents[1] / "n"), "n/1 is not served: its contract is of m version 1"),
        (lambda one: (one / "contract.json").write_text("{"), "{one} is not served: {one}/contract.json is not a"),
        (lambda one: (one.parent / "pinned").write_text("7\n"), "m is pinned to '7', which is not one of its versions"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, harm: Callable[[Path], object], sentence: str) -> None:
    one = publish(tmp_path)
    harm(one)
    wrong, _ = doctor(tmp_path)
    assert sum(sentence.format(one=one, home=one.parent) in line for line in wrong) == 1, wrong


def test_a_default_model_that_is_not_there(tmp_path: Path) -> None:
    publish(tmp_path)
    wrong, _ = doctor(tmp_path, "--default-model", "nope")
    assert wrong == [f"ECA_DEFAULT_MODEL=nope is not in {tmp_path}; there are: m"]


def test_a_pin_is_told(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path, version=2)
    (tmp_path / "m" / "pinned").write_text("1\n")
    wrong, said = doctor(tmp_path)
    assert wrong == []
    assert any("m is pinned to version 1, although there is version 2" in line for line in said)


def test_what_would_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, runtime="openvino")
    monkeypatch.setattr("eca_service.doctor.find_spec", lambda name: None)
    wrong, said = doctor(tmp_path)
    assert wrong == []
    assert any("m version 1 is fastest in OpenVINO, which is not installed" in line for line in said)


def test_a_number_that_was_given_to_another_build(tmp_path: Path) -> None:
    served = Registry(publish(tmp_path).parents[1], None).models["m"].contract.public()
    shutil.rmtree(tmp_path / "m")
    assert [finding.text for finding in examine._stale({"m": served}, Registry(tmp_path, None))] == []
    publish(tmp_path, engine_sha256=hashlib.sha256(b"another").hexdigest())
    (told,) = examine._stale({"m": served}, Registry(tmp_path, None))
    assert told.wrong
    assert told.text.startswith("m version 1 is not the build that the service serves under this number")
