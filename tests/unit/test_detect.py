"""Which network a checkpoint holds is found from its weights, or it is told why it is none of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eca_build.checkpoint import load
from eca_build.cli.inspecting import described
from eca_build.detect import detect
from eca_build.errors import BuildError
from eca_build.networks import create, with_formula
from eca_build.networks.attention import Kind
from safetensors.torch import save_file

from tests.unit.checkpoints import ECA18, state_of


@pytest.mark.parametrize("width", [0.1, 0.35, 0.75, 1.3, 1.4, 2.0])
@pytest.mark.parametrize("arch", ["mobilenetv2", "mobilenetv2_cifar"])
def test_every_width_is_found(arch: str, width: float) -> None:
    """Or another one that gives the same network."""
    with torch.device("meta"):
        state = create(with_formula(arch, "none", 5, width=width)).state_dict()
        found = detect(state, Path("m.pth"))
        again = create(found).state_dict()
    assert found.arch == arch
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    ("kind", "told"),
    [("eca-ns", "kernel_sizes"), ("se", "hidden"), ("cbam", "hidden"), ("se-gc2", "group"), ("none", "")],
)
def test_what_is_told_of_each_attention(tmp_path: Path, kind: Kind, told: str) -> None:
    spec = with_formula("resnet20_cifar", kind, 10)
    torch.save(state_of(spec), tmp_path / "m.pth")
    found = described(load(tmp_path / "m.pth"))
    sizes = {name: found[name] for name in ("kernel_sizes", "hidden", "group")}
    assert sizes == {name: list(spec.sizes) if name == told else [] for name in sizes}
    assert (found["architecture"], found["attention"], found["input_size"]) == (spec.arch, kind, 32)


def test_se_var1_must_be_said(tmp_path: Path) -> None:
    spec = with_formula("resnet20_cifar", "se-var1", 10)
    torch.save(state_of(spec), tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec.attention == "none"
    assert load(tmp_path / "m.pth", attention="se-var1").spec == spec
    with pytest.raises(BuildError, match="with attention none, not eca; leave --attention out"):
        load(tmp_path / "m.pth", attention="eca")
    torch.save(state_of(ECA18), tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", attention="eca").spec == ECA18
    with pytest.raises(BuildError, match="with attention eca, not se-var1"):
        load(tmp_path / "m.pth", attention="se-var1")


def test_other_groups_than_the_paper_s(tmp_path: Path) -> None:
    spec = replace(with_formula("resnet20_cifar", "se-gc2", 10), sizes=(4,) * 9)
    torch.save(state_of(spec), tmp_path / "m.pth")
    with pytest.raises(BuildError, match="SE-GC with groups of 4 of 16 channels"):
        load(tmp_path / "m.pth")


def test_missing_keys_and_other_networks(tmp_path: Path) -> None:
    state = state_of(ECA18)
    for drop, sentence in (
        ("layer1.0.bn1.weight", r"lacks layer1\.0\.bn1\.weight"),
        ("layer1.0.attention.conv.weight", "ECA in 7 of 8 blocks"),
        ("conv1.weight", "not a network known here, its weights are in bn1, fc, layer1, layer2, layer3, layer4;"),
    ):
        torch.save({k: v for k, v in state.items() if k != drop}, tmp_path / "m.pth")
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / "m.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("layer1.0.")}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"looks like a ResNet but lacks layer1\.0\.conv1\.weight"):
        load(tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", arch="resnet18").spec == ECA18
    with pytest.raises(BuildError, match="holds resnet18, not resnet50"):
        load(tmp_path / "m.pth", arch="resnet50")
    for odd, sentence in (({1: torch.zeros(1)}, "no state_dict"), (state | {"fc.weight": torch.zeros(())}, "0 axes")):
        torch.save(odd, tmp_path / "m.pth")
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / "m.pth")
    torch.save([1, 2], tmp_path / "m.pth")
    with pytest.raises(BuildError, match="no state_dict"):
        load(tmp_path / "m.pth")
    save_file({"bn1.num_batches_tracked": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(BuildError, match=r"m\.safetensors holds no weights; save the network's state_dict\(\)"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("arch", "classifier", "other", "sentence"),
    [
        (
            "resnet18",
            "fc.",
            None,
            "a ResNet but has no fc.weight, its classifier: its weights are in bn1, conv1, layer1,",
        ),
        ("mobilenetv2", "classifier.1.", "top.", "a MobileNetV2 but has no classifier.1.weight, .* in features, top"),
    ],
)
def test_a_network_without_its_classifier_is_told_so(
    tmp_path: Path, arch: str, classifier: str, other: str | None, sentence: str
) -> None:
    """As it is trained for features alone; it was called a network that is not known."""
    state = state_of(with_formula(arch, "none", 5))
    kept = {k.replace(classifier, other or ""): v for k, v in state.items() if other or not k.startswith(classifier)}
    save_file(kept, tmp_path / "m.safetensors")
    with pytest.raises(BuildError, match=rf"m\.safetensors looks like {sentence}.*; give a file of the whole network"):
        load(tmp_path / "m.safetensors")
