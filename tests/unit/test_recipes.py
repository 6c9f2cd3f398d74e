"""Which preprocessing a model is built with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from eca_build import checkpoint, cli, images
from eca_build.errors import BuildError
from eca_build.initial import write
from eca_build.networks import ARCHS
from eca_build.recipes import default_recipe, recipe_beside, recipe_of
from eca_service.contract import Preprocessing, read

WEIGHTS = Path(__file__).parents[2] / "build" / "demo" / "resnet14-eca.safetensors"
OTHER = "--resize 40 --crop 36 --filter bicubic --mean 0.5 0.4 0.3 --std 0.5 0.25 0.125"


def test_the_architectures_own_are_those_that_their_weights_were_trained_with() -> None:
    """Told here too: where they were others, engine and network would still agree, on the wrong pixels."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    imagenet = Preprocessing(resize=256, crop=224, filter="bilinear", mean=mean, std=std)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    cifar = Preprocessing(resize=32, crop=32, filter="bilinear", mean=mean, std=std)
    for arch in ARCHS:
        assert default_recipe(arch).model_dump() == (cifar if arch.endswith("_cifar") else imagenet).model_dump()


def test_what_is_not_asked_for_is_the_architecture_s_own() -> None:
    assert recipe_of("resnet50", {}) == Preprocessing()
    assert recipe_of("resnet50", {"resize": 232}) == Preprocessing(resize=232)
    assert recipe_of("resnet14_cifar", {"std": (1, 1, 1)}).mean == default_recipe("resnet14_cifar").mean
    with pytest.raises(BuildError, match="a crop of 288 pixels cannot be cut from images of 256; give --resize"):
        recipe_of("resnet50", {"crop": 288})


def test_another_normalisation_is_in_the_engine(tmp_path: Path) -> None:
    asked = [str(WEIGHTS), "--repository", str(tmp_path), "--name", "m", *OTHER.split()]
    done = CliRunner().invoke(cli.main, ["compile", *asked])
    assert done.exit_code == 0, done.output
    recipe = read(tmp_path / "m" / "1").preprocessing
    assert recipe == Preprocessing(resize=40, crop=36, filter="bicubic", mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.125))
    sample = images.synthetic(36, 8)
    session = onnxruntime.InferenceSession(tmp_path / "m" / "1" / "model.onnx")
    (answers,) = session.run(["probabilities"], {"image": sample})
    network = checkpoint.load(WEIGHTS).network.eval()
    pixels = torch.from_numpy(sample).permute(0, 3, 1, 2) / 255
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.5, 0.25, 0.125), strict=True)):
        pixels[:, channel] = (pixels[:, channel] - mean) / std
    with torch.inference_mode():
        wanted = network(pixels).softmax(1).numpy()
    assert np.abs(answers - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--mean 123.7 116.3 103.5", "123.7 is not in the range 0<=x<=1"),
        ("--std 0 1 1", "0.0 is not in the range 0<x<=1"),
        ("--std 1 nan 1", "NaN is no number"),
        ("--std 1e-40 1 1", "the training diverged, or --std is too small"),
        ("--mean 0.5", "requires 3 arguments"),
        ("--filter lanczos", "is not one of 'bilinear', 'bicubic'"),
    ],
)
def test_what_cannot_be_is_refused(options: str, sentence: str, tmp_path: Path) -> None:
    asked = [str(WEIGHTS), "--repository", str(tmp_path), *options.split()]
    done = CliRunner().invoke(cli.main, ["compile", *asked])
    assert (done.exit_code, sentence in done.output) == (2, True), done.output


TIMM: dict[str, object] = {
    "input_size": [3, 256, 256],
    "test_input_size": [3, 320, 320],
    "interpolation": "bilinear",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
LITTLE: dict[str, object] = {"input_size": [3, 224, 224]}
AS_TIMM = Preprocessing(resize=269, crop=256, filter="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
AS_TIMM_WITHOUT_A_WORD = Preprocessing(resize=256, crop=224, filter="bicubic")
AS_TIMM_ROUNDS = Preprocessing(resize=235, crop=224, filter="bicubic")  # down, from 235.8


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        ({"architecture": "ecaresnet26t", "pretrained_cfg": TIMM}, AS_TIMM),
        ({"architecture": "gluon_resnet26t", "pretrained_cfg": TIMM}, AS_TIMM),
        ({"architecture": "resnet26t", "pretrained_cfg": LITTLE | {"crop_pct": 0.95}}, AS_TIMM_ROUNDS),
        ({"architecture": "resnet26t", "pretrained_cfg": LITTLE}, AS_TIMM_WITHOUT_A_WORD),
        ({"architecture": "seresnet26t", "pretrained_cfg": LITTLE | {"mean": None}}, AS_TIMM_WITHOUT_A_WORD),
        ({"architectures": ["ResNetForImageClassification"], "num_channels": 3}, None),
        ({"architecture": "x", "pretrained_cfg": None}, None),
        ({"architecture": "resnet26t", "num_classes": 10}, None),
        ({"architecture": "resnet26t"} | LITTLE, AS_TIMM_WITHOUT_A_WORD),
        ({"architecture": "ecaresnet26t"} | TIMM, AS_TIMM),
        (LITTLE, None),
        ([TIMM], None),
    ],
)
def test_timm_s_config_is_followed_as_timm_does(config: object, recipe: Preprocessing | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = recipe_beside(tmp_path / "model.safetensors", "resnet26t")
    assert (recipe_of("resnet26t", found) if found else None) == recipe


def test_without_timm_s_config_nothing_is_told(tmp_path: Path) -> None:
    assert recipe_beside(tmp_path / "m.pth", "resnet26t") == {}


def test_a_config_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    sentence = r"config\.json is damaged or not JSON; move it away, or give all of --resize"
    for content in (b"\xff{ // not JSON", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(BuildError, match=sentence):
            recipe_beside(tmp_path / "m.pth", "resnet26t")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    with pytest.raises(BuildError, match=r"config\.json cannot be read: Is a directory; move it away, or give all of"):
        recipe_beside(tmp_path / "folder" / "m.pth", "resnet26t")


@pytest.mark.parametrize(
    "argument",
    [
        {"global_pool": "max"},
        {"output_stride": 8},
        {"act_layer": "silu"},
        {"aa_layer": "blurpool"},
        {"pad_type": "same"},
    ],
)
def test_a_network_of_other_answers_by_its_config_is_refused(argument: dict[str, object], tmp_path: Path) -> None:
    """Its weights have the same names and shapes."""
    asked = {"num_classes": 10, "drop_rate": 0.1, "global_pool": "avg", "output_stride": 32}
    config = {"architecture": "resnet26t", "pretrained_cfg": TIMM, "model_args": asked}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert recipe_beside(tmp_path / "m.pth", "resnet26t")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": asked | argument}))
    with pytest.raises(BuildError, match=f"has {next(iter(argument))}=.*, which no network here has; it cannot be"):
        recipe_beside(tmp_path / "m.pth", "resnet26t")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"crop_mode": "squash"}, "has images cropped by 'squash', but the service crops the centre; move it away, or"),
        ({"input_size": [3, 224, 256]}, "images of 256 x 224 pixels, the networks here take squares; move it away"),
        ({"input_size": 224}, "does not say what is done to images"),
        ({"input_size": [3, 1e9, 1e9]}, "does not say what is done to images"),
        ({"crop_pct": "all"}, "does not say what is done to images"),
        ({"crop_pct": 1e-320}, "does not say what is done to images"),
        ({"interpolation": "lanczos"}, "does not say what is done .* 'bilinear' or 'bicubic'; move it away"),
        ({"mean": [123.7, 116.3, 103.5]}, "mean and std are between 0 and 1"),
        ({"std": [0.2, 0, 0.2]}, "mean and std are between 0 and 1"),
        ({"mean": [0, 0, 0], "std": [58.4, 57.1, 57.4]}, "mean and std are between 0 and 1"),
        ({"std": [0.2, float("nan"), 0.2]}, "does not say what is done to images"),
        ({"mean": [0.5]}, "does not say what is done to images"),
    ],
)
def test_what_the_service_cannot_do_of_it_is_refused(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet26t", "pretrained_cfg": TIMM | change}))
    with pytest.raises(BuildError, match=sentence):
        recipe_beside(tmp_path / "m.pth", "resnet26t")


@pytest.mark.parametrize(
    ("name", "arch"),
    [("ecaresnet50d", "resnet50"), ("resnet50", "resnet50d"), ("mobilenetv2_100", "resnet50"), (None, "resnet50")],
)
def test_another_network_s_config_is_refused(name: str | None, arch: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": LITTLE}))
    with pytest.raises(BuildError, match=f"is of {name}, and m.pth beside it is {arch}; move it away"):
        recipe_beside(tmp_path / "m.pth", arch)


def test_a_mobilenet_s_config_is_called_by_its_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "mobilenetv2_050", "pretrained_cfg": LITTLE}))
    assert recipe_beside(tmp_path / "m.pth", "mobilenetv2")["crop"] == 224


def test_what_is_asked_for_precedes_timm_s_config(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", "resnet10t", "eca", 3)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architecture": "ecaresnet10t", "pretrained_cfg": TIMM}))
    asked = ["compile", str(tmp_path / "m.safetensors"), "--repository", str(tmp_path / "models")]
    done = CliRunner().invoke(cli.main, [*asked, "--resize", "40", "--crop", "32"])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(
        "; bilinear to 40 pixels, a crop of 32, and all else that was not given, as config.json says\n"
    )
    recipe = read(tmp_path / "models" / "m" / "1").preprocessing
    assert recipe == Preprocessing(resize=40, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    file.write_text(json.dumps({"architecture": "ecaresnet10t", "pretrained_cfg": {"input_size": 1}}))
    done = CliRunner().invoke(cli.main, asked)
    assert (done.exit_code, "give all of --resize, --crop" in done.stderr) == (2, True), done.output
    done = CliRunner().invoke(cli.main, [*asked, "--name", "other", *OTHER.split()])
    assert (done.exit_code, "config.json" in done.output) == (0, False), done.output
