"""Random weights are written for latency alone, and everything made of them says so."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from eca_build import images
from eca_build.checkpoint import load
from eca_build.cli import main
from eca_build.compile import compile_checkpoint
from eca_build.errors import BuildError
from eca_build.export import Served, reference
from eca_build.initial import write
from eca_build.inputs import Options
from eca_build.networks import site_channels
from eca_build.networks.attention import Kind
from eca_service.contract import Preprocessing, read

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("attention", ["none", "se-var1", "cbam"])
def test_what_was_written_is_read(tmp_path: Path, attention: str) -> None:
    path = tmp_path / "m.safetensors"
    done = main(
        ["init", "resnet14_cifar", "--attention", attention, "--width", "2", "-o", str(path)], standalone_mode=False
    )
    assert not done
    found = load(path)
    assert (found.weights, found.spec.attention, found.spec.classes, found.spec.width) == ("random", attention, 10, 2)
    with torch.inference_mode():
        answers = found.network(torch.randn(8, 3, 32, 32)).softmax(1)
    assert torch.isfinite(answers).all()
    assert answers.max() < 0.99, "answers must not be saturated, or an engine's differences would not show"


@pytest.mark.parametrize("attention", ["none", "eca"])
def test_deep_networks_are_not_sharper_than_what_is_verified(tmp_path: Path, attention: Kind) -> None:
    """On images unlike those that the batch norms were set by: a picture's smooth parts grew from block to block."""
    write(tmp_path / "m.safetensors", "resnet50", attention, 1000)
    recipe = Preprocessing(resize=128, crop=128)
    sample = images.load(ROOT / "build" / "demo" / "images", recipe, 8)
    with torch.inference_mode():
        network = load(tmp_path / "m.safetensors").network
        expected = reference(network, recipe, torch.from_numpy(sample))
        torch.testing.assert_close(Served(network, recipe)(torch.from_numpy(sample))[0], expected, rtol=0, atol=2e-6)
    assert expected.max() < 0.9


@pytest.mark.parametrize("width", [0.05, 0.35, 0.7, 1.15, 1.4, 2.0])
def test_widths_are_found_again(tmp_path: Path, width: float) -> None:
    spec = write(tmp_path / "m.safetensors", "mobilenetv2_cifar", "none", 3, width)
    found = load(tmp_path / "m.safetensors").spec
    assert site_channels(found) == site_channels(spec)


def test_contract_and_labels_say_random(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, "resnet14_cifar", "eca-ns", 3)
    built = compile_checkpoint(Options(path, tmp_path / "repository"), lambda step: None)
    contract = read(built.folder)
    assert contract.weights == "random"
    assert contract.verification.top1_agreement == 1
    assert contract.kernel_sizes == (3,) * 6
    assert contract.labels[1] == "random weights, for latency only: 1"
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nfrog\n")
    with pytest.raises(BuildError, match=r"weights are random.*leave --labels out"):
        compile_checkpoint(Options(path, tmp_path / "repository", labels=labels), lambda step: None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nonet", "none", 3), "no architecture nonet"),
        (("resnet18", "none", 3, 2.0), "resnet18 has no width of 2"),
        (("resnet20_cifar", "none", 3, 1.5), "resnet20_cifar has no width"),
        (("mobilenetv2_cifar", "none", 3, 0.33), r"no width of 0\.33; MobileNetV2 takes multiples of 0\.05"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, arguments: tuple[str, str, int], sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        write(tmp_path / "m.safetensors", *arguments)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=r"must end in \.safetensors"):
        write(tmp_path / "m.pth", "resnet18", "none", 3)


def test_trained_weights_are_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for trained in ((ROOT / "build" / "demo" / "resnet14-eca.safetensors").read_bytes(), b"mine", b""):
        path.write_bytes(trained)
        with pytest.raises(BuildError, match=r"m\.safetensors exists and does not hold random weights .* to -o"):
            write(path, "resnet20_cifar", "none", 3)
        assert path.read_bytes() == trained
    path.unlink()
    for classes in (3, 4):
        write(path, "resnet20_cifar", "none", classes)
    assert load(path).spec.classes == 4


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, "resnet20_cifar", "none", 3)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(BuildError, match=r"m\.safetensors cannot be written: File too large"):
            write(path, "resnet20_cifar", "none", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("options", ["--width nan", "--classes 1", "--seed -1", f"--seed {2**63}"])
def test_numbers_that_cannot_be(tmp_path: Path, options: str) -> None:
    asked = ["init", "mobilenetv2_cifar", "-o", str(tmp_path / "m.safetensors"), *options.split()]
    done = CliRunner().invoke(main, asked)
    assert (done.exit_code, f"Invalid value for '{asked[4]}'" in done.output) == (2, True), done.output


def test_unknown_attention_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "resnet18", "--attention", "magic", "-o", str(tmp_path / "m.safetensors")], standalone_mode=False)
    assert "there is no attention magic; there are none, se, se-var1" in capsys.readouterr().err
