"""The compiled kernels, executed on a CPU: what TensorRT and the driver are given is right, and within all bounds."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_build import tensorrt_rtx
from eca_build.graphs import AttentionGraph
from eca_plugin import driver, operators, tuning
from eca_plugin.ahead_of_time import compile_plan
from eca_plugin.descriptor import TORCH_NAMES
from eca_plugin.gated_conv1x1 import HOPPER
from eca_plugin.plan import Plan
from eca_plugin.tuning import Site
from torch import Tensor

from tests.gpu import sites
from tests.unit import ptx_counts
from tests.unit.kernel_cases import TOLERANCES, Case, arguments, cases, exact
from tests.unit.ptx_driver import Driver

ORDERS = re.compile(
    r"\t(?:bar\.sync|bar\.warp\.sync|cp\.async\.wait_group|fence\.proxy|wgmma\.fence|wgmma\.wait_group)[^;]*;"
)
# With a Hopper's own matrix instructions: each tile that has them, and one that is too small for them.
OF_WARPGROUPS = [
    Case("gated_conv1x1", dtype, 2, 136, side, side, nhwc, True, True, inputs=inputs, way=7 + way, chip=HOPPER)
    for way in range(7)
    for nhwc, dtype, side, inputs in ((way % 2 == 0, "float16", 8, 136), (way % 2 == 1, "bfloat16", 10, 40))
]
TOLD = r"what another|not waited for|what a thread writes|not fenced|no wgmma.fence|before its product is finished"


class Emulated(Driver):
    """Executes what `change` makes of the PTX."""

    def __init__(self) -> None:
        super().__init__()
        self.change: Callable[[str], str] = str

    def launch(self, plan: Plan, site: Site, inputs: tuple[Tensor, ...], residual: Tensor | None, out: Tensor) -> None:
        """As `operators.launch`."""
        given = [self.add(tensor) for tensor in (*inputs, *([] if residual is None else [residual]))]
        batch = inputs[0].shape[0]
        scalars = () if plan.rows_per_block is None else (plan.rows(batch),)
        compiled = compile_plan(plan, site.dtype, site.residual)
        out.fill_(torch.nan)
        driver.launch(
            replace(compiled, ptx=self.change(compiled.ptx)), plan.grid(batch), given, scalars, self.add(out), 0
        )


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """What our operators are launched on."""
    made = Emulated()
    monkeypatch.setattr(driver, "_library", lambda: made)
    monkeypatch.setattr(operators, "launch", made.launch)
    return made


def difference(case: Case) -> float:
    """Of the operator's result from its definition in float64."""
    inputs, residual = arguments(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "plan_of", lambda site, traced: case.plan(site))
        got = getattr(operators, case.operator)(*inputs, residual, case.relu)
    return float((got.double() - exact(case)).abs().max())


@pytest.mark.parametrize("case", cases() + OF_WARPGROUPS, ids=lambda case: case.name)
def test_ptx_computes_the_definition(emulated: Emulated, case: Case) -> None:
    assert difference(case) <= TOLERANCES[case.dtype]
    assert emulated.launches == 1


@pytest.mark.parametrize(
    ("case", "needless"),
    [
        (Case("fused_eca", "float32", 1, 96, 7, 5, nhwc=True, residual=False, relu=False, taps=9), 0),
        (Case("gated_conv1x1", "float16", 1, 136, 8, 8, nhwc=True, residual=True, relu=True, inputs=40, way=4), 0),
        (Case("gated_conv1x1", "float16", 1, 160, 3, 3, nhwc=False, residual=True, relu=True, inputs=7), 0),
        (Case("gated_conv1x1", "float16", 1, 136, 8, 8, False, True, True, inputs=136, way=10, chip=HOPPER), 0),
        # two warpgroups; the compiler puts a barrier between their first copies
        (Case("gated_conv1x1", "float16", 1, 256, 12, 12, True, True, True, inputs=136, way=7, chip=HOPPER), 1),
    ],
    ids=lambda one: one.name if isinstance(one, Case) else "",
)
def test_each_barrier_and_each_wait_is_missed(emulated: Emulated, case: Case, needless: int) -> None:
    """So that a race, did the kernel have one, would have been told."""
    seen = itertools.count()
    emulated.change = lambda ptx: ORDERS.sub(lambda order: order[0] if next(seen) >= 0 else "", ptx)
    assert difference(case) <= TOLERANCES[case.dtype]
    orders = next(seen)
    assert orders > 3
    told = []
    for one in range(orders):
        turns = itertools.count()
        emulated.change = lambda ptx: ORDERS.sub(lambda order: "" if next(turns) == one else order[0], ptx)  # noqa: B023
        try:
            difference(case)
        except AssertionError as error:
            told.append(str(error))
    assert len(told) == orders - needless
    assert all(re.search(TOLD, one) for one in told), told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((r"(mov\.u32 \t%r\d+, %ctaid)\.y", r"\1.x"), "beyond the end|differ"),
        ((r"st\.global\.v4\.b32 \[ (%rd\d+) \+ 0 \]", r"st.global.v4.b32 [ \1 + 8 ]"), "not aligned"),
        ((r"ld\.global\.v4\.b32 (\{[^}]*\}), \[ (%rd\d+) \+ 0 \]", r"ld.global.v4.b32 \1, [ \2 + 65536 ]"), "beyond"),
    ],
)
def test_what_is_out_of_bounds_is_told(emulated: Emulated, change: tuple[str, str], told: str) -> None:
    case = Case("fused_eca", "float16", 2, 256, 3, 3, nhwc=True, residual=True, relu=True, taps=5)
    emulated.change = lambda ptx: re.sub(*change, ptx)
    with pytest.raises(AssertionError, match=told):
        assert difference(case) <= TOLERANCES[case.dtype], "they differ"


def test_a_map_that_fits_into_registers_is_read_once(emulated: Emulated) -> None:
    """But for the neighbours of a block of 128 channels: four on each side, where there are."""
    assert difference(Case("fused_eca", "float16", 1, 512, 7, 7, True, True, True, taps=5)) <= TOLERANCES["float16"]
    of_x, of_weight, of_residual, of_out = emulated.memory.bytes_read
    size = 512 * 7 * 7 * 2
    assert (of_x, of_residual, of_out) == (size + 6 * 4 * 7 * 7 * 2, size, 0)
    assert of_weight


@pytest.mark.parametrize(("channels", "side", "taps", "cycles"), [(1024, 14, 5, 450), (2048, 7, 7, 250)])
def test_what_a_program_s_threads_hand_on_is_spread_over_the_banks(
    channels: int, side: int, taps: int, cycles: int
) -> None:
    """With all of a warp's lanes at one bank it was 1,188 and 1,090."""
    assert 0 < ptx_counts.shared_cycles(channels, side, taps) < cycles


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the extra `tensorrt-rtx`")
def test_tensorrt_rtx_s_plugins_launch_the_kernels() -> None:
    found = tensorrt_rtx.run([sys.executable, "-m", "tests.unit.rtx_launch"], "the plugins could not be launched")
    differences = [float(line) for line in found.splitlines()]
    assert len(differences) == 6
    assert max(differences) <= TOLERANCES["float16"]


@pytest.mark.large
@pytest.mark.parametrize("graph", sites.FUSED)
@pytest.mark.parametrize("arch", sites.ARCHS)
def test_ptx_of_the_published_networks_computes_the_definition(
    emulated: Emulated, arch: str, graph: AttentionGraph
) -> None:
    """At every call in them: one image, float16, NHWC; matrix products with a Hopper's instructions too."""
    names = {operator: name for name, operator in TORCH_NAMES.items()}
    calls = sites.uses(arch, graph, "fp16")
    for site in calls:
        shapes = dict(site.shapes)
        inner, height, width = shapes.get("x") or shapes["h"]
        channels = shapes["weight"][0] if "weight" in shapes else inner
        taps, inputs = shapes["w"][0] if "w" in shapes else 0, inner if "h" in shapes else 0
        common = ("float16", 1, channels, height, width, True, site.residual, site.relu)
        ways = [(0, None), *([(len(site.plans()), HOPPER)] if inputs else [])]
        for way, chip in ways:
            case = Case(names[site.operator], *common, taps=taps, inputs=inputs, way=way, chip=chip)
            assert difference(case) <= TOLERANCES["float16"], site.key
    assert emulated.launches >= len(calls) > 3
