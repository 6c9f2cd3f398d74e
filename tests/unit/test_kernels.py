"""The kernels against their definitions under Triton's interpreter, and their PTX against what a plugin needs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.kernel_cases import TOLERANCES, Case, cases

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_plugin import fused_eca, gated_conv1x1, operators, scale_add_relu, tuner, tuning
from eca_plugin.ahead_of_time import (
    CHIPS,
    Compiled,
    KernelError,
    Type,
    assemble,
    compile_plan,
    widest_load_bytes,
    without_hidden_parameters,
)
from eca_plugin.plan import Plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The largest difference of each case, from one process under the interpreter."""
    target = tmp_path_factory.mktemp("kernels") / "differences.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernel_cases", str(target)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, float] = json.loads(target.read_text())
    return result


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_kernel_computes_its_definition(differences: dict[str, float], case: Case) -> None:
    assert differences[case.name] <= TOLERANCES[case.dtype]


PLANS: dict[str, tuple[Plan, Type, bool, int]] = {
    # plan, type, residual, the widest load that this layout allows, in bytes
    "fused-56-nhwc": (fused_eca.plans(256, 56 * 56, 5, nhwc=True, relu=True, value_bytes=2)[0], "fp16", True, 16),
    "fused-56-nchw": (fused_eca.plans(256, 56 * 56, 5, nhwc=False, relu=True, value_bytes=2)[0], "bf16", True, 16),
    "fused-56-ragged": (fused_eca.plans(24, 56 * 56, 1, nhwc=True, relu=False, value_bytes=2)[0], "bf16", False, 16),
    "fused-56-part": (fused_eca.plans(24, 56 * 56, 1, nhwc=True, relu=False, value_bytes=2)[0], "bf16", False, 16),
    "fused-14-nhwc": (fused_eca.plans(1024, 14 * 14, 5, nhwc=True, relu=True, value_bytes=2)[0], "bf16", True, 16),
    "fused-14-nchw": (fused_eca.plans(96, 14 * 14, 3, nhwc=False, relu=False, value_bytes=2)[0], "fp16", False, 8),
    "fused-7-nhwc": (fused_eca.plans(2048, 7 * 7, 9, nhwc=True, relu=True, value_bytes=4)[0], "fp32", True, 16),
    "fused-7-nchw": (fused_eca.plans(320, 7 * 7, 1, nhwc=False, relu=False, value_bytes=4)[0], "fp32", False, 4),
    "scale-56-nhwc": (scale_add_relu.plans(256, 56 * 56, nhwc=True, relu=True)[0], "fp16", True, 16),
    "scale-7-nchw": (scale_add_relu.plans(2048, 7 * 7, nhwc=False, relu=True)[0], "bf16", True, 16),
    "gated-56-nhwc": (gated_conv1x1.plans(64, 256, 56 * 56, nhwc=True, relu=True, value_bytes=2)[0], "fp16", True, 16),
    "gated-7-nhwc": (gated_conv1x1.plans(960, 160, 7 * 7, nhwc=True, relu=False, value_bytes=2)[0], "bf16", False, 16),
    "gated-14-nchw": (
        gated_conv1x1.plans(256, 1024, 14 * 14, nhwc=False, relu=True, value_bytes=2)[0],
        "fp16",
        True,
        16,
    ),
    "gated-56-fp32": (gated_conv1x1.plans(64, 256, 56 * 56, nhwc=True, relu=True, value_bytes=4)[0], "fp32", True, 16),
}


@pytest.mark.parametrize("name", PLANS)
def test_ptx_is_what_a_plugin_needs(name: str) -> None:
    plan, dtype, residual, load_bytes = PLANS[name]
    compiled = compile_plan(plan, dtype, residual)
    given = [argument for argument in plan.kernel.arg_names if argument not in plan.constants]
    assert compiled.parameters == len(given) - (not residual) == compiled.ptx.count("\t.param ")
    assert ".version 8.0\n" in compiled.ptx
    assert ".target sm_80\n" in compiled.ptx
    assert str(ROOT) not in compiled.ptx
    assert widest_load_bytes(compiled.ptx) >= load_bytes
    for chip in CHIPS:
        used = assemble(compiled, chip)
        assert used.spilled_bytes == 0
        assert used.registers <= 65536 // compiled.threads, "or no block of threads fits"


@pytest.mark.parametrize("name", ["fused-14-nhwc", "scale-56-nhwc", "gated-56-nhwc"])
def test_inductor_s_copy_of_a_kernel_is_the_same(name: str, tmp_path: Path) -> None:
    """It writes the kernel and the functions that it calls, of other modules too, into its own code."""
    from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code as copied

    plan, dtype, residual, _ = PLANS[name]
    source = tmp_path / f"copy_{plan.kernel.__name__}.py"
    source.write_text(f"import triton\nimport triton.language as tl\n\n\n@triton.jit\n{copied(plan.kernel)}")
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    copy = replace(plan, kernel=getattr(module, plan.kernel.__name__))
    assert compile_plan(copy, dtype, residual) == compile_plan(plan, dtype, residual)


def test_kernels_of_many_sites_are_compiled_side_by_side() -> None:
    """As every package and every measurement for a GPU begins."""
    small = tuning.site("ScaleAddReLU", {"x": (1, 16, 8, 8), "gate": (1, 16)}, "fp16", True, True, True)
    shapes = {"h": (1, 512, 7, 7), "weight": (2048, 512), "bias": (2048,), "gate": (1, 2048)}
    large = tuning.site("GatedConv1x1", shapes, "fp16", True, False, True)
    (first, _), (second, _) = tuner.compile_all([small], 90, most=2), tuner.compile_all([large], 80, most=1)
    found = first | second
    wanted = [(small, plan) for plan in small.plans(90)[:2]] + [(large, large.plans(80)[0])]
    assert found == {(site, plan.label): compile_plan(plan, "fp16", site.residual) for site, plan in wanted}


def test_ptx_that_reads_a_hidden_parameter_is_refused() -> None:
    ptx = (
        ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ ld.param.b64 %rd1, [k_param_1]; }"
    )
    assert without_hidden_parameters(ptx, "k", 2).count(".param .u64") == 2
    with pytest.raises(KernelError, match="parameter 1"):
        without_hidden_parameters(ptx, "k", 1)


def test_ptx_that_does_not_assemble_is_a_sentence() -> None:
    with pytest.raises(KernelError, match=r"k for sm_90: .*error"):
        assemble(Compiled("k", ".version 8.0\n.target sm_80\nnonsense", 0, 32, 0), 90)


def test_what_cannot_be_compiled_says_why() -> None:
    plan, dtype, residual, _ = PLANS["fused-56-nhwc"]
    wrong = Plan(plan.kernel, {**plan.constants, "HALO": 0}, 1, 4, "a fault in a function that it calls")
    with pytest.raises(KernelError, match="cannot be compiled: arange's end argument must be greater"):
        compile_plan(wrong, dtype, residual)


def test_a_kernel_too_large_for_a_plain_launch_is_a_sentence() -> None:
    plan = gated_conv1x1.plans(512, 256, 49, nhwc=True, relu=True, value_bytes=2)[0]
    large = {**plan.constants, "BLOCK_ROWS": 128, "BLOCK_CHANNELS": 128, "BLOCK_INPUTS": 64, "HALVES": True}
    with pytest.raises(KernelError, match="bytes of shared memory"):
        compile_plan(Plan(plan.kernel, large, 1, 8, "too large", stages=4), "fp16", False)


MAP = torch.zeros(1, 8, 2, 2)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "message"),
    [
        (MAP, torch.zeros(4), None, "odd number of taps"),
        (MAP, torch.zeros(11), None, "from 1 to 9"),
        (MAP, torch.zeros(3).half(), None, "share one type"),
        (MAP.int(), torch.zeros(3).int(), None, "share one type"),
        (MAP[:, :, :0], torch.zeros(3), None, "none empty"),
        (torch.zeros(1, 8, 2, 4)[..., ::2], torch.zeros(3), None, "contiguous or channels_last"),
        (MAP, torch.zeros(3), torch.zeros(1, 8, 2, 3), "shape and the layout"),
        (MAP, torch.zeros(3), MAP.to(memory_format=torch.channels_last), "shape and the layout"),
    ],
)
def test_bad_arguments_are_a_sentence(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operators.fused_eca(x, weight, residual)


@pytest.mark.parametrize("shape", [(65536, 1, 1, 1), (1, 2048, 1024, 1024)])
def test_maps_beyond_a_grid_or_an_offset_are_a_sentence(shape: tuple[int, ...]) -> None:
    """Such a launch is refused on a GPU, or reads elsewhere."""
    large = torch.empty(shape, device="meta")
    with pytest.raises(ValueError, match="up to 65535 images of up to 2147483647 values"):
        operators.fused_eca(large, torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match="up to 65535 images of up to 2147483647 values"):
        _gated_conv1x1(shape[0], 1, shape[1], shape[2:])


def _gated_conv1x1(batch: int, inputs: int, channels: int, plane: tuple[int, ...]) -> None:
    """Called with arguments of these shapes, which have no memory."""
    shapes = ((batch, inputs, *plane), (channels, inputs), (channels,), (batch, channels))
    h, weight, bias, gate = (torch.empty(shape, device="meta") for shape in shapes)
    operators.gated_conv1x1(h, weight, bias, gate)


@pytest.mark.parametrize(
    ("batch", "inputs", "channels", "plane"),
    [(40_000, 1, 1, (256, 256)), (65_535, 1, 40_000, (1, 1)), (1, 65_536, 40_000, (1, 1))],
    ids=["pixels", "gates", "weights"],
)
def test_more_than_gated_conv1x1_counts_is_a_sentence(
    batch: int, inputs: int, channels: int, plane: tuple[int, int]
) -> None:
    """It counts in int32: what is beyond would be read and written elsewhere."""
    with pytest.raises(ValueError, match="up to 2147483647 pixels, gates and weights each"):
        _gated_conv1x1(batch, inputs, channels, plane)


def test_arguments_on_two_devices_are_a_sentence() -> None:
    """Kernels are given addresses: that of another device ends the process."""
    elsewhere = torch.zeros(3, device="meta")
    with pytest.raises(ValueError, match="lie on one device, not on cpu and meta"):
        operators.fused_eca(MAP, elsewhere)
    with pytest.raises(ValueError, match="lie on one device, not on cpu and meta"):
        operators.fused_eca(MAP, torch.zeros(3), MAP.to("meta"))


def test_gates_and_weights_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(ValueError, match="does not fit a map"):
        operators.scale_add_relu(MAP, torch.zeros(1, 9))
    with pytest.raises(ValueError, match="do not fit a map"):
        operators.gated_conv1x1(MAP, torch.zeros(4, 9), torch.zeros(4), torch.zeros(1, 4))
