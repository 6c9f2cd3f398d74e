"""What each operator takes and gives, once for every way in which TensorRT meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from eca_plugin import cluster_eca, fused_eca, gated_conv1x1, scale_add_relu
from eca_plugin.ahead_of_time import Type
from eca_plugin.plan import Plan

VERSION = "1"
RESIDUAL = "residual"
# What a plugin with a residual is called: TensorRT's plugins have a fixed number of inputs.
WITH_RESIDUAL = "Residual"
VALUE_BYTES: dict[Type, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Operator:
    """An operator's inputs without the residual, the first of which is a map [N, C, H, W].

    `plans` makes the launches from the inputs' shapes, whether maps are NHWC, whether a ReLU ends it, bytes a value,
    and the compute capability (90 is 9.0) of the one chip that will run them, None where it may be any. The first is
    the one to take without a measurement, and runs on every chip.
    `channels` names the input and the axis that the result takes its channels from.
    """

    name: str
    inputs: tuple[str, ...]
    channels: tuple[str, int]
    plans: Callable[[Shapes, bool, bool, int, int | None], tuple[Plan, ...]]

    def arguments(self, residual: bool) -> tuple[str, ...]:
        """Names of all inputs, in the kernel's order."""
        return (*self.inputs, RESIDUAL) if residual else self.inputs

    def is_map(self, argument: str) -> bool:
        """Whether the argument is [N, C, H, W] and shares its layout with the result."""
        return argument in (self.inputs[0], RESIDUAL)


def _pixels(shape: Shape) -> int:
    return shape[2] * shape[3]


def _fused_eca(s: Shapes, nhwc: bool, relu: bool, value_bytes: int, chip: int | None) -> tuple[Plan, ...]:
    channels, pixels, taps = s["x"][1], _pixels(s["x"]), s["w"][0]
    found = fused_eca.plans(channels, pixels, taps, nhwc, relu, value_bytes)
    if nhwc and chip is not None and chip >= cluster_eca.CAPABILITY:
        found += cluster_eca.plans(channels, pixels, taps, relu, value_bytes)
    return found


def _scale_add_relu(s: Shapes, nhwc: bool, relu: bool, _bytes: int, _chip: int | None) -> tuple[Plan, ...]:
    return scale_add_relu.plans(s["x"][1], _pixels(s["x"]), nhwc, relu)


def _gated_conv1x1(s: Shapes, nhwc: bool, relu: bool, value_bytes: int, chip: int | None) -> tuple[Plan, ...]:
    found = gated_conv1x1.plans(s["h"][1], s["weight"][0], _pixels(s["h"]), nhwc, relu, value_bytes)
    if chip == gated_conv1x1.HOPPER and value_bytes == 2:
        found += tuple(replace(plan, capability=chip, label=plan.label + gated_conv1x1.WGMMA) for plan in found)
    return found


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("FusedECA", ("x", "w"), ("x", 1), _fused_eca),
        Operator("ScaleAddReLU", ("x", "gate"), ("x", 1), _scale_add_relu),
        Operator("GatedConv1x1", ("h", "weight", "bias", "gate"), ("weight", 0), _gated_conv1x1),
    )
}
# What PyTorch calls them, in `torch.ops.eca`; their arguments are the same, then the residual, then relu.
TORCH_NAMES = {"fused_eca": "FusedECA", "scale_add_relu": "ScaleAddReLU", "gated_conv1x1": "GatedConv1x1"}
