"""TensorRT's own Python plugin layer accepts our plugins, and gets from them what the kernels are launched with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_plugin.descriptor import OPERATORS, TORCH_NAMES
from eca_plugin.plan import Plan

from tests.unit import ptx_machine, ptx_program
from tests.unit.kernel_cases import TOLERANCES, Case, arguments, exact
from tests.unit.ptx_driver import Driver

ROOT = Path(__file__).parents[2]
NAMES = [f"eca::{name}{suffix}" for name in ("FusedECA", "ScaleAddReLU", "GatedConv1x1") for suffix in ("", "Residual")]
INPUTS = {"FusedECA": 2, "ScaleAddReLU": 2, "GatedConv1x1": 4}
# What the bindings are linked against. The layer calls none of it.
FUNCTIONS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]

pytestmark = [
    pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="needs TensorRT's bindings, of the extra `dev`"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for empty libraries"),
]


def empty_libraries(folder: Path) -> Path:
    """The folder, with libraries of TensorRT's names in it whose functions do nothing."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        for major in (10, 11):
            target = folder / f"lib{library}.so.{major}"
            subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", target, source], check=True)
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the layer got from each plugin, from one process."""
    folder = empty_libraries(tmp_path_factory.mktemp("layer"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.quick_plugin_layer", str(folder / "answers.json")],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return result


def test_all_plugins_are_registered_once(answers: dict[str, Any]) -> None:
    assert answers["names"] == NAMES


def operator_plans(operator: str, nhwc: bool) -> tuple[Plan, ...]:
    """The ways to launch it at the layer's shapes."""
    shapes = {
        "FusedECA": {"x": (3, 256, 56, 56), "w": (5,)},
        "ScaleAddReLU": {"x": (3, 256, 56, 56), "gate": (3, 256)},
        "GatedConv1x1": {"h": (3, 64, 56, 56), "weight": (256, 64), "bias": (256,), "gate": (3, 256)},
    }[operator]
    return OPERATORS[operator].plans(shapes, nhwc, True, 2, 90 if shutil.which("nvcc") else None)


@pytest.mark.parametrize("layout", ["LINEAR", "HWC8"])
@pytest.mark.parametrize("name", NAMES)
def test_layer_expands_types_formats_and_launch(answers: dict[str, Any], name: str, layout: str) -> None:
    answer = answers[f"{name} HALF {layout}"]
    operator = name.split("::")[1].removesuffix("Residual")
    residual = name.endswith("Residual")
    assert answer["inputs"] == INPUTS[operator] + residual
    assert answer["types"] == ["HALF"]
    assert answer["shape"] == [3, 256, 56, 56]
    weights = INPUTS[operator] - 1
    in_hwc8 = ["HWC8", *["LINEAR"] * weights, *["HWC8"] * residual, "HWC8"]
    assert answer["combinations"] == [["HALF", "LINEAR"]] * len(in_hwc8) + [["HALF", kind] for kind in in_hwc8]
    kernel, ptx = answer["kernel"]
    assert f".entry {kernel}(" in ptx
    scalars = [3 * 56 * 56] if operator == "GatedConv1x1" else []
    assert answer["scalars"] == scalars
    # pointers to the inputs, scalars, pointer to the output
    declared = re.findall(r"\.param \.(u32|u64)", ptx)
    assert declared == ["u64"] * answer["inputs"] + ["u32"] * len(scalars) + ["u64"]
    launch = answer["launch"]
    assert re.search(rf"\.(reqntid|maxntid) {launch['block_x']}\b", ptx)
    assert {launch[axis] for axis in ("grid_z", "block_y", "block_z")} == {1}
    ways = operator_plans(operator, nhwc=True)
    assert answer["tactics"] == [[1], list(range(1, len(ways) + 1))], "in 16 bits all ways are for HWC8"
    plan = ways[-1] if layout == "HWC8" else operator_plans(operator, nhwc=False)[0]
    assert (launch["grid_x"], launch["grid_y"]) == plan.grid(3)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("operator", TORCH_NAMES)
def test_what_the_layer_launches_computes_the_definition(
    answers: dict[str, Any], operator: str, residual: bool
) -> None:
    """As TensorRT does: the inputs, then the scalars, then the output."""
    answer = answers[f"small {TORCH_NAMES[operator]}{'Residual' * residual}"]
    inputs_count = 24 if operator == "gated_conv1x1" else 0
    case = Case(operator, "float16", 3, 40, 5, 7, True, residual, relu=True, taps=5, inputs=inputs_count)
    inputs, added = arguments(case)
    out = torch.full_like(exact(case), torch.nan, dtype=torch.float16)
    emulated, launch = Driver(), answer["launch"]
    given = [emulated.add(tensor) for tensor in (*inputs, *([] if added is None else [added]))]
    program = ptx_program.parsed(answer["kernel"][1])
    assert launch["block_x"] == program.threads
    grid = launch["grid_x"], launch["grid_y"]
    ptx_machine.launch(
        program, grid, launch["shared_mem"], [*given, *answer["scalars"], emulated.add(out)], emulated.memory
    )
    assert float((out.double() - exact(case)).abs().max()) <= TOLERANCES["float16"]


def test_every_type_has_a_kernel(answers: dict[str, Any]) -> None:
    for dtype, formats in (("FLOAT", ["LINEAR"]), ("HALF", ["LINEAR", "HWC8"]), ("BF16", ["LINEAR", "HWC8"])):
        answer = answers[f"eca::FusedECA {dtype} LINEAR"]
        assert answer["types"] == [dtype]
        assert {kind for _, kind in answer["combinations"]} == set(formats)


def test_channels_that_hwc8_would_pad_stay_linear(answers: dict[str, Any]) -> None:
    assert {kind for _, kind in answers["odd"]["combinations"]} == {"LINEAR"}


def test_variants_of_a_kernel_have_names_of_their_own(answers: dict[str, Any]) -> None:
    kernels = {answer["kernel"][0] for answer in answers.values() if isinstance(answer, dict)}
    assert len(kernels) == sum(isinstance(answer, dict) for answer in answers.values())
