"""Forged passports against forged machines: a sentence that names the difference and the command that rebuilds."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from eca_build.cli.compiling import compile_
from eca_service import metrics, preflight
from eca_service.cli import main
from eca_service.contract import Calibration, Contract, GateSite, Passport, Preprocessing
from eca_service.preflight import Gpu, Machine, look, obstacle, obstacle_of
from eca_service.registry import Registry

from tests.unit.test_contract import CONTRACT

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
A100 = Gpu("NVIDIA A100-SXM4-40GB", "8.0")
PASSPORT = Passport(tensorrt="10.16.1.11", cuda="13.2", gpu=H100.name, compute_capability="9.0", driver="580.65.06")
MACHINE = Machine((H100,), "580.82.07", "10.16.1")


def plan(**changes: object) -> Contract:
    """A TensorRT engine's contract."""
    return CONTRACT.model_copy(
        update={"engine": "tensorrt", "precision": "fp16", "attention_graph": "fused", "passport": PASSPORT} | changes
    )


def test_an_engine_runs_where_it_was_built() -> None:
    assert obstacle(plan(), MACHINE) is None
    assert obstacle(plan(), Machine((A100, H100), MACHINE.driver, None)) is None
    assert obstacle(plan(), None) is None, "another machine's Triton says for itself"
    assert obstacle(CONTRACT, Machine()) is None, "onnx runs everywhere"


# whole, though it is ImageNet's: the network's own, or its config.json's, may be another
RECIPE = "--resize 32 --crop 32 --filter bilinear --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"


@pytest.mark.parametrize(
    ("contract", "machine", "sentence"),
    [
        (plan(), Machine(), "built for NVIDIA H100 80GB HBM3, but here is no NVIDIA GPU with a driver"),
        (plan(), Machine((A100,), "580.82.07", "10.16.1"), r"this machine has NVIDIA A100-SXM4-40GB \(8.0\)"),
        (plan(), Machine((H100,), "580.82.07", "11.0.0"), "with TensorRT 10.16.1.11, but this machine has 11.0.0"),
        (
            plan(),
            Machine((H100,), "575.57.08", "10.16.1"),
            "driver 580.65.06, but this machine has the older 575.57.08",
        ),
        (plan(precision="int8"), Machine((A100,), "580.82.07", "10.16.1"), "--precision int8"),
        (plan(passport=None), MACHINE, "does not say what the engine was built with"),
        (plan(passport=PASSPORT.model_copy(update={"gpu": None})), MACHINE, "does not say what the engine was built"),
        (plan(passport=Passport()), MACHINE, "does not say what the engine was built with"),
    ],
)
def test_a_difference_is_named_with_the_command(contract: Contract, machine: Machine, sentence: str) -> None:
    reason = obstacle(contract, machine)
    assert reason is not None
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(reason)
    again = f"--name m --target tensorrt --precision {contract.precision} --attention eca --attention-graph fused"
    assert f"`eca-build compile CHECKPOINT {again} --max-batch 8 {RECIPE} --labels LABELS`" in reason


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"max_batch": 4, "labels": ("class 0", "class 1")}, f"--max-batch 4 {RECIPE}"),
        ({"weights": "random"}, f"--max-batch 8 {RECIPE}"),
        (
            {"weights": "random", "preprocessing": Preprocessing(filter="bicubic", mean=(0, 0.5, 1), std=(0.1,) * 3)},
            "--max-batch 8 --resize 256 --crop 224 --filter bicubic --mean 0.0 0.5 1.0 --std 0.1 0.1 0.1",
        ),
        (
            {
                "precision": "int8",
                "calibration": Calibration(source="photos/", images=60, sha256="0"),
                "gates": (GateSite(block="layer1.0", channels=16),),
            },
            f"--max-batch 8 {RECIPE} --expose-gates --labels LABELS --calibration IMAGES",
        ),
    ],
)
def test_the_command_gives_the_same_tensors_and_labels(changes: dict[str, object], options: str) -> None:
    """Else the next version is refused, for callers rely on them."""
    contract = plan(**changes)
    assert (obstacle(contract, Machine()) or "").endswith(f"--attention-graph fused {options}`")
    known = {option for parameter in compile_.params for option in parameter.opts}
    assert {word for word in options.split() if word.startswith("--")} <= known


PACKAGE = Passport(torch="2.13.0+cpu", device="cpu", instructions=("avx2", "fma"))
ON_GPU = Passport(torch="2.13.0+cu130", gpu=H100.name, compute_capability="9.0")
HERE = Machine(torch="2.13.0", instructions=frozenset({"avx2", "fma", "sse"}))


def package(passport: Passport | None) -> Contract:
    """An inductor engine's contract."""
    return plan(engine="inductor", precision="fp32", passport=passport)


@pytest.mark.parametrize(
    ("passport", "machine", "sentence"),
    [
        (PACKAGE, HERE, None),
        (PACKAGE, None, None),
        (ON_GPU, replace(HERE, gpus=(A100, Gpu("another H100", "9.0"))), None),
        (PACKAGE, replace(HERE, torch=None), "runs in PyTorch 2.13.0.cpu, which is not installed here"),
        (PACKAGE, replace(HERE, torch="2.14.0"), "with PyTorch 2.13.0.cpu, but this machine has 2.14.0"),
        (PACKAGE, replace(HERE, instructions=frozenset({"fma"})), "processor with avx2, which this one lacks"),
        (ON_GPU, HERE, "built for NVIDIA H100 80GB HBM3, but here is no NVIDIA GPU"),
        (
            ON_GPU,
            replace(HERE, gpus=(A100,)),
            r"\(compute capability 9.0\), but this machine has NVIDIA A100-SXM4-40GB \(8.0\)",
        ),
        (None, HERE, "does not say what the engine was built with"),
        (Passport(torch="2.13.0"), replace(HERE, gpus=(H100,)), "does not say what the engine was built with"),
    ],
)
def test_packages_of_pytorch_s_compiler(
    passport: Passport | None, machine: Machine | None, sentence: str | None
) -> None:
    reason = obstacle(package(passport), machine)
    assert (reason is None) == (sentence is None)
    if reason and sentence:
        assert re.search(sentence, reason)
        assert "`eca-build compile CHECKPOINT --name m --target inductor" in reason


@pytest.mark.parametrize(
    ("contract", "machine", "embedded", "beside"),
    [
        (plan(), HERE, "here is no NVIDIA GPU", None),
        (package(ON_GPU), HERE, "here is no NVIDIA GPU", None),
        (package(ON_GPU), replace(HERE, torch=None), "which is not installed here", None),
        (package(PACKAGE), replace(HERE, torch="2.14.0"), "but this machine has 2.14.0", None),
        (plan(), replace(MACHINE, tensorrt="11.0.0"), "but this machine has 11.0.0", None),
        (
            plan(),
            replace(MACHINE, driver="575.57.08"),
            "this machine has the older 575.57.08",
            "this machine has the older 575.57.08",
        ),
        (plan(), Machine((A100,)), "this machine has NVIDIA A100", "this machine has NVIDIA A100"),
        (package(ON_GPU), replace(HERE, gpus=(A100,)), "this machine has NVIDIA A100", "this machine has NVIDIA A100"),
        (package(PACKAGE), replace(HERE, instructions=frozenset()), "which this one lacks", "which this one lacks"),
        (package(None), HERE, "does not say", "does not say"),
        (plan(), MACHINE, None, None),
    ],
)
def test_a_triton_beside_this_container_has_libraries_and_perhaps_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch, contract: Contract, machine: Machine, embedded: str | None, beside: str | None
) -> None:
    """As in a pod: the processor is the same, and GPUs that are seen from here are its too."""
    monkeypatch.setattr(preflight, "look", lambda: machine)
    for url, sentence in ((None, embedded), ("127.0.0.1:8001", beside)):
        reason = obstacle_of(url)(contract)
        assert (reason is None) == (sentence is None), reason
        assert (sentence or "") in (reason or "")


def test_this_machine_s_pytorch_and_instructions() -> None:
    assert look().torch == importlib.metadata.version("torch")
    assert "sse2" in look().instructions


def test_rtx_engines_are_never_triton_s() -> None:
    for machine in (MACHINE, None):
        assert "no backend for TensorRT-RTX" in (obstacle(plan(engine="tensorrt-rtx"), machine) or "")


def tool(folder: Path, script: str) -> None:
    """An nvidia-smi of our own."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_machine_is_read_from_the_driver_s_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool(tmp_path, f"echo '{H100.name}, 9.0, 580.82.07'; echo '{A100.name}, 8.0, 580.82.07'")
    assert (look().gpus, look().driver) == ((H100, A100), "580.82.07")
    tool(tmp_path, "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert look().gpus == ()


def publish(repository: Path, contract: Contract) -> None:
    """Writes one contract as a published version."""
    folder = repository / contract.name / str(contract.version)
    folder.mkdir(parents=True)
    (folder / "contract.json").write_text(contract.model_dump_json())


def test_what_cannot_run_here_is_not_offered_to_triton(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path, CONTRACT)
    publish(tmp_path, plan(name="gpu"))
    publish(tmp_path, plan(version=2))
    with caplog.at_level(logging.ERROR):
        registry = Registry(tmp_path, None, lambda contract: obstacle(contract, Machine()))
    assert {name: model.contract.version for name, model in registry.models.items()} == {"m": 1}
    assert caplog.text.count("no NVIDIA GPU") == 2
    assert set(Registry(tmp_path, None, obstacle_of("triton.example:8001")).models) == {"gpu", "m"}


def test_a_mismatch_is_shown_until_it_is_mended(tmp_path: Path) -> None:
    def shown() -> set[tuple[str, str]]:
        found = metrics.parse(metrics.exposition().decode())
        return {(s.labels["model"], s.labels["version"]) for s in found if s.name == "eca_engine_mismatch"}

    publish(tmp_path, plan(name="a"))
    publish(tmp_path, plan(name="b"))
    machines = [Machine()]
    registry = Registry(tmp_path, None, lambda contract: obstacle(contract, machines[-1]))
    assert {("a", "1"), ("b", "1")} <= shown()
    machines.append(MACHINE)
    shutil.rmtree(tmp_path / "b")
    assert registry.read(tmp_path / "a" / "1")
    assert not {("a", "1"), ("b", "1")} & shown()


def test_doctor_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    publish(tmp_path / "models", plan(name="gpu"))
    done = CliRunner().invoke(main, ["doctor", "--repository", str(tmp_path / "models"), "--http-port", "1"])
    assert done.exit_code == 1
    assert "gpu version 1 cannot be served: it was built for NVIDIA H100" in done.output
    up = CliRunner().invoke(main, ["up", "--repository", str(tmp_path / "models")])
    assert up.exit_code == 2
    assert "no model that can be served here" in up.output
