"""Cases for the kernels, and a process that runs them under Triton's interpreter, on a CPU.

    TRITON_INTERPRET=1 python -m tests.unit.kernel_cases DIFFERENCES.json

writes the largest difference of each case from the operator's definition in float64. It is a process of its own because
the interpreter must be chosen before Triton is imported, and then nothing can be compiled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from eca_build import custom_nodes
from torch import Tensor

if TYPE_CHECKING:
    from eca_plugin.plan import Plan
    from eca_plugin.tuning import Site

TOLERANCES = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}


class Case(NamedTuple):
    """One call. `taps` is FusedECA's, `inputs` GatedConv1x1's; 0 for the others.

    `way` is the number of the plan that is launched, of those for `chip` (90 is 9.0), by default for any chip. With
    `kept`, which is FusedECA's, only so many of its tiles stay in registers, as of a map that is larger than tests can
    afford.
    """

    operator: str
    dtype: str
    images: int
    channels: int
    height: int
    width: int
    nhwc: bool
    residual: bool
    relu: bool
    taps: int = 0
    inputs: int = 0
    way: int = 0
    kept: int | None = None
    chip: int | None = None

    @property
    def name(self) -> str:
        """The case on one line."""
        shape = f"{self.images}x{self.channels}x{self.height}x{self.width}"
        options = [
            self.dtype,
            "nhwc" if self.nhwc else "nchw",
            *(["residual"] * self.residual),
            *(["relu"] * self.relu),
        ]
        ways = [*([f"way {self.way}"] * bool(self.way)), *([] if self.kept is None else [f"kept {self.kept}"])]
        ways += [f"chip {self.chip}"] * bool(self.chip)
        return "-".join([self.operator, shape, *options, f"{self.taps or self.inputs}", *ways])

    def plan(self, site: Site) -> Plan:
        """What is launched."""
        plan = site.plans(self.chip)[self.way]
        return plan if self.kept is None else replace(plan, constants={**plan.constants, "KEPT": self.kept})


def cases() -> list[Case]:
    """Every channel count of the networks and odd ones, every k, maps that fit in registers and that do not."""
    found = []
    shapes = [(16, 17, 18), (24, 7, 7), (96, 7, 5), (160, 3, 3), (320, 7, 7), (2048, 2, 2), (13, 5, 3), (1, 1, 1)]
    dtypes = list(TOLERANCES)
    for index, (channels, height, width) in enumerate(shapes):
        for nhwc in (False, True):
            for turn, (residual, relu) in enumerate([(False, False), (True, True), (True, False), (False, True)]):
                if (turn > 1 and channels > 24) or (channels == 2048 and nhwc != residual):
                    continue  # the interpreter is slow
                dtype = dtypes[(index + turn + nhwc) % 3]
                taps = (1, 3, 5, 7, 9)[(index + turn + 2 * nhwc) % 5]
                common = (dtype, 1 if channels == 2048 else 2, channels, height, width, nhwc, residual, relu)
                found.append(Case("fused_eca", *common, taps=taps))
                if turn < 2:
                    found.append(Case("scale_add_relu", *common))
                    if channels < 2048:
                        found.append(Case("gated_conv1x1", *common, inputs=(64, 40, 24, 7)[index % 4]))
    for taps in (1, 3, 5, 7, 9):
        for dtype in dtypes:
            found.append(Case("fused_eca", dtype, 1, 40, 4, 4, taps in (3, 9), True, True, taps=taps))
    for nhwc in (False, True):
        for kept in (0, 1, 2):
            found.append(Case("fused_eca", "float16", 2, 40, 17, 18, nhwc, True, True, taps=5, kept=kept))
        for way in (1, 2, 3):
            found.append(Case("fused_eca", "bfloat16", 1, 72, 9, 7, nhwc, True, True, taps=7, way=way))
    found += [Case("scale_add_relu", "float16", 1, 40, 17, 18, True, True, True, way=way) for way in (1, 2, 3, 4)]
    # tiles whose rows are all of one image, and one of two images
    for way, side in ((0, 8), (2, 16), (4, 8), (5, 8), (6, 8)):
        found.append(Case("gated_conv1x1", "float16", 2, 136, side, side, way % 2 == 0, True, True, inputs=40, way=way))
    return found


def arguments(case: Case) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The operator's inputs, drawn at random but the same each time, and the residual where it has one."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return ((torch.rand(shape, generator=generator) * 2 - 1) * scale).to(dtype)

    def mapped(channels: int) -> Tensor:
        memory = torch.channels_last if case.nhwc else torch.contiguous_format
        return random(case.images, channels, case.height, case.width).contiguous(memory_format=memory)

    x = mapped(case.inputs or case.channels)
    gate = random(case.images, case.channels).sigmoid()
    residual = mapped(case.channels) if case.residual else None
    if case.operator == "fused_eca":
        return (x, random(case.taps)), residual
    if case.operator == "scale_add_relu":
        return (x, gate), residual
    weight = random(case.channels, case.inputs, scale=case.inputs**-0.5)
    return (x, weight, random(case.channels), gate), residual


def exact(case: Case) -> Tensor:
    """What its definition gives in float64."""
    inputs, residual = arguments(case)
    defined = getattr(custom_nodes, case.operator)
    added = None if residual is None else residual.double()
    found: Tensor = defined(*(one.double() for one in inputs), added, case.relu)
    return found


def difference(case: Case) -> float:
    """The largest difference of the kernel's result from its definition in float64."""
    from eca_plugin import operators, tuning

    inputs, residual = arguments(case)
    chosen = tuning.plan_of
    tuning.plan_of = lambda site, traced: case.plan(site)
    try:
        got = getattr(operators, case.operator)(*inputs, residual, case.relu)
    finally:
        tuning.plan_of = chosen
    assert got.dtype == inputs[0].dtype
    assert got.stride() == (residual if residual is not None else got).stride()
    return float((got.double() - exact(case)).abs().max())


def mend_bfloat16_products() -> None:
    """Makes the interpreter's matrix product read bfloat16 as numbers: Triton 3.7's multiplies their bit patterns.

    To be removed when an interpreter passes the bfloat16 cases without it.
    """
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    product = InterpreterBuilder.create_dot

    def numbers(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        return product(self, numbers(a), numbers(b), *rest)

    InterpreterBuilder.create_dot = create_dot


if __name__ == "__main__":
    mend_bfloat16_products()
    Path(sys.argv[1]).write_text(json.dumps({case.name: difference(case) for case in cases()}))
