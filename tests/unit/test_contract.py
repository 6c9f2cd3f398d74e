"""A contract is read back as it was written, and a damaged one is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eca_service.contract import (
    Contract,
    ContractError,
    Golden,
    Head,
    Preprocessing,
    Verification,
    read,
)

RECIPE = Preprocessing(resize=32, crop=32)
CONTRACT = Contract(
    name="m",
    version=1,
    architecture="resnet20_cifar",
    attention="eca",
    kernel_sizes=(3, 3, 3),
    classes=2,
    labels=("cat", "dog"),
    preprocessing=RECIPE,
    preprocessing_fingerprint=RECIPE.fingerprint,
    features_shape=(64, 8, 8),
    precision="fp32",
    engine="onnx",
    max_batch=8,
    parameters=1,
    flops=1,
    build_key="k",
    checkpoint_sha256="c",
    onnx_sha256="o",
    engine_sha256="o",
    tools={},
    verification=Verification(source="s", images=1, top1_agreement=1, largest_difference=0, tolerance=1e-5),
    golden=Golden(sha256="g", probabilities=((0.5, 0.5),), tolerance=1e-4),
    head=Head(classes=2, channels=64, weight="", bias=""),
)


def write(folder: Path, **changes: object) -> Path:
    (folder / "contract.json").write_text(json.dumps(CONTRACT.model_dump(mode="json") | changes))
    return folder


def test_round_trip(tmp_path: Path) -> None:
    assert read(write(tmp_path), head=True) == CONTRACT
    assert read(tmp_path).head is None
    assert "head" not in read(tmp_path).public()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": ["cat"]}, "1 labels for 2 classes"),
        ({"preprocessing_fingerprint": "0"}, "recipe was changed"),
        ({"max_batch": 0}, "max_batch"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_damaged_contract_is_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        read(write(tmp_path, **changes))


def test_contracts_from_before_there_were_runtimes_are_read(tmp_path: Path) -> None:
    written = CONTRACT.model_dump(mode="json")
    for later in ("runtime", "calibration", "choice", "weights"):
        del written[later]
    for later in ("labelled", "accuracy", "reference_accuracy", "least_agreement"):
        del written["verification"][later]
    (tmp_path / "contract.json").write_text(json.dumps(written))
    assert read(tmp_path, head=True) == CONTRACT


def test_missing_and_not_json(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="is missing"):
        read(tmp_path)
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(ContractError, match="not a contract"):
        read(tmp_path)


def test_fingerprint_follows_the_recipe() -> None:
    assert Preprocessing().fingerprint == Preprocessing().fingerprint
    assert Preprocessing().fingerprint != Preprocessing(resize=232).fingerprint
