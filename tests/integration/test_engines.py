"""Engines other than the plain one, served by the real Triton: integers, OpenVINO, PyTorch's compiler."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from eca_build import images, verify
from eca_build.compile import compile_checkpoint
from eca_build.inputs import Options
from eca_build.recipes import default_recipe
from eca_build.sessions import Kind, computes_bf16
from eca_build.targets import Wish
from eca_service.contract import Contract, read
from eca_service.triton.python_backend import runtimes
from numpy.typing import NDArray

from tests.integration.conftest import FRESH, MODEL, ROOT, Service, ready

DEMO = ROOT / "build" / "demo"
WEIGHTS = DEMO / f"{MODEL}.safetensors"
# name: how it is built, and what runs it
BUILDS: dict[str, tuple[Wish, Kind]] = {"integers": (Wish(precision="int8"), "onnxruntime")}
if find_spec("openvino"):
    if computes_bf16():
        BUILDS["narrow"] = Wish(precision="bf16", runtime="openvino"), "openvino"
    BUILDS["both"] = Wish(precision="int8", runtime="openvino"), "openvino"
if shutil.which(os.environ.get("CXX", "g++")):
    BUILDS["compiled"] = Wish("inductor", attention_graph="fused"), "inductor"


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the processes that these tests start have their temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def engines(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network as each of BUILDS."""
    repository = tmp_path_factory.mktemp("engines") / "repository"
    for name, (wish, _) in BUILDS.items():
        asked = Options(WEIGHTS, repository, name=name, labels=DEMO / "labels.txt", images=DEMO / "images", wish=wish)
        assert compile_checkpoint(asked, lambda _: None).changed
    return repository


@pytest.fixture(scope="module")
def service(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """All of them, served."""
    with ready(engines, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def sample() -> NDArray[np.uint8]:
    """33 images: more than a full batch, so that a lone one is left over."""
    return images.load(DEMO / "images", default_recipe("resnet14_cifar"), 33)


def asked(service: Service, name: str, pixels: NDArray[np.uint8], output: str = "probabilities") -> NDArray[np.float32]:
    """Triton's own answers, when asked for nothing else, as the gateway does."""
    tensor = grpc.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    with grpc.InferenceServerClient(f"127.0.0.1:{service.triton_port}") as client:
        answers: NDArray[np.float32] = client.infer(
            name, [tensor], outputs=[grpc.InferRequestedOutput(output)]
        ).as_numpy(output)
        return answers


@pytest.mark.parametrize("name", BUILDS)
def test_what_is_served_is_what_was_verified(
    service: Service, engines: Path, repository: Path, sample: NDArray[np.uint8], name: str
) -> None:
    contract = read(engines / name / "1")
    listed = FRESH.get(f"{service.url}/v1/models/{name}").json()
    assert listed["precision"] == contract.precision
    engine = next(path for path in (engines / name / "1").iterdir() if path.name.startswith("model."))
    own = verify.answers(engine, sample, verify.runner(BUILDS[name][1], contract.precision))
    parts = [asked(service, name, part) for part in (sample[:32], sample[32:])]
    np.testing.assert_allclose(np.concatenate(parts), own, atol=1e-5)
    plain = verify.answers(repository / MODEL / "1" / "model.onnx", sample)
    assert (own.argmax(1) == plain.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize("name", BUILDS)
def test_every_engine_gives_the_map_that_explanations_are_made_of(
    service: Service, repository: Path, sample: NDArray[np.uint8], name: str
) -> None:
    """A compiler's package has it in an order that Triton refuses: each explanation was an internal error."""
    found = asked(service, name, sample[:3], "features")
    engine = runtimes.open_onnxruntime(str(repository / MODEL / "1" / "model.onnx"), 1)
    (expected,) = engine.together(("features",), sample[:3])
    assert found.shape == expected.shape
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_a_compiler_s_files_are_cleared_away(service: Service, engines: Path, temporary: Path) -> None:
    """Of PyTorch's there were gigabytes, and to load a package took seconds for their sake."""
    if "compiled" not in BUILDS:
        pytest.skip("needs a C++ compiler")
    assert not [path for path in temporary.glob("**/torchinductor_*/**/*") if path.is_file()]
    assert len(list(temporary.rglob("aotinductor_*"))) == 1, "the package that is open, unpacked"
    assert list(temporary.glob("eca-triton-*/temporary/aotinductor_*")), "where it goes when the service does"


def test_the_runtimes_differ(engines: Path, sample: NDArray[np.uint8]) -> None:
    """So that the test above tells them apart."""
    if "both" not in BUILDS:
        pytest.skip("needs the extra `openvino`")
    for name in BUILDS.keys() & {"narrow", "both"}:
        engine = engines / name / "1" / "model.onnx"
        assert read(engine.parent).runtime == "openvino"
        precision = read(engine.parent).precision
        here, there = (
            verify.answers(engine, sample, verify.runner(kind, precision)) for kind in ("openvino", "onnxruntime")
        )
        assert 1e-3 < np.abs(here - there).max() < 0.1


def test_contracts_tell_what_they_are(engines: Path) -> None:
    contracts: dict[str, Contract] = {name: read(engines / name / "1") for name in BUILDS}
    for contract in contracts.values():
        verdict = contract.verification
        assert (verdict.source, verdict.images, verdict.labelled) == ("images/", 60, 60)
        assert verdict.accuracy is not None
        assert verdict.reference_accuracy is not None
        assert abs(verdict.accuracy - verdict.reference_accuracy) < 0.06
        assert contract.choice is None
    assert contracts["integers"].calibration is not None
    assert contracts["integers"].calibration.source == "images/"
    assert contracts["integers"].golden.tolerance == 0.1
    if "compiled" in contracts:
        passport = contracts["compiled"].passport
        assert passport is not None
        assert passport.torch is not None
        assert (contracts["compiled"].precision, contracts["compiled"].sites_rewritten) == ("fp32", 6)
        assert contracts["compiled"].verification.largest_difference < 1e-5


def test_without_openvino_onnxruntime_serves_the_same_file(
    engines: Path, sample: NDArray[np.uint8], tmp_path: Path
) -> None:
    """A contract that names it is no obstacle: the golden answers hold in both."""
    if "both" not in BUILDS:
        pytest.skip("needs the extra `openvino`")
    shutil.copytree(engines / "both", tmp_path / "r" / "both")
    path = tmp_path / "r" / "both" / "1" / "contract.json"
    contract = json.loads(path.read_text())
    contract["runtime"] = None  # what the backend does where it is missing
    path.write_text(json.dumps(contract))
    with ready(tmp_path / "r", tmp_path) as running:
        own = verify.answers(tmp_path / "r" / "both" / "1" / "model.onnx", sample)
        np.testing.assert_allclose(asked(running, "both", sample[:32]), own[:32], atol=1e-5)
