"""Which preprocessing a model is built with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from eca_build import checkpoint, cli, images
from eca_build.errors import BuildError
from eca_build.networks import ARCHS
from eca_build.recipes import default_recipe, recipe_of
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
    assert recipe_of("resnet50", {"resize": None, "mean": None}) == Preprocessing()
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
