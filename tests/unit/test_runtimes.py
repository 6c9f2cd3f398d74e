"""An engine gives the same answers whichever of its ways runs it, and whatever else is asked for beside them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from eca_build import images
from eca_build.export import export
from eca_service.triton.python_backend import runtimes
from eca_service.triton.python_backend.runtimes import Engine, Run

from tests.unit.test_export import SMALL, network

NAMES = runtimes.OUTPUTS[:2]
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
