"""An engine gives the same answers whichever of its ways runs it, and whatever else is asked for beside them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from eca_build import images, inductor, verify
from eca_build.export import export
from eca_service.triton.python_backend import runtimes
from eca_service.triton.python_backend.runtimes import Engine, Run
from torch import Tensor, nn

from tests.unit.test_export import SMALL, network

NAMES = runtimes.OUTPUTS[:2]
WARNED = """
import sys, numpy
from eca_service.triton.python_backend import runtimes
engine = runtimes.open_inductor(sys.argv[1], 1)
images = numpy.zeros((1, 8, 8, 3), numpy.uint8)
images.flags.writeable = False
engine.together(("probabilities",), images)
"""
OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed here")


def opened(runtime: str, path: Path) -> Engine:
    """The engine on two threads."""
    if runtime == "openvino":
        return runtimes.open_openvino(str(path), "fp32", 2)
    return runtimes.open_onnxruntime(str(path), 2)


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=OPENVINO)])
def test_answers_do_not_depend_on_what_is_asked_beside_them(runtime: str, tmp_path: Path) -> None:
    """All ways at once, one to five images, with feature maps and without."""
    path = tmp_path / "model.onnx"
    export(network("resnet14_cifar", "eca"), SMALL, path)
    engine, pixels = opened(runtime, path), images.synthetic(SMALL.crop, 5)
    expected = engine.together(NAMES, pixels)

    def ask(run: Run, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            names = draw.sample(NAMES, draw.choice([1, 2]))
            count = draw.randint(1, len(pixels))
            for name, found in zip(names, run(tuple(names), pixels[:count]), strict=True):
                np.testing.assert_allclose(found, expected[NAMES.index(name)][:count], atol=1e-5)

    ways = [engine.together, *engine.alone]
    with ThreadPoolExecutor(len(ways)) as pool:
        assert list(pool.map(ask, ways, range(len(ways)))) == [None] * 3


class Mean(nn.Module):
    """The least that a package is made of: the mean colour as features, uint8 [N, H, W, 3]."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = image.to(torch.float32).mean((1, 2)) / 255
        return features.softmax(1), features


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_a_package_is_given_no_more_images_than_it_takes(tmp_path: Path) -> None:
    """One for a single image answered the first of many, and memory that nobody had written."""
    package, pixels = tmp_path / "model.pt2", images.synthetic(8, 4)
    inductor.build(Mean(), package, crop=8, max_batch=1)
    expected = Mean()(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(verify.answers(package, pixels, verify.runner("inductor")), expected, atol=1e-6)
    strict = [sys.executable, "-W", "error:The given NumPy array", "-c", WARNED, str(package)]
    done = subprocess.run(strict, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"what Triton gives can only be read: {done.stderr}"
