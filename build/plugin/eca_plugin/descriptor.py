"""What each operator takes and gives, once for every way in which TensorRT meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eca_plugin import fused_eca, gated_conv1x1, scale_add_relu
from eca_plugin.ahead_of_time import Type
from eca_plugin.plan import Plan

NAMESPACE = "eca"
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

    `plan` makes the launch from the inputs' shapes, whether maps are NHWC, whether a ReLU ends it, and bytes a value.
    `channels` names the input and the axis that the result takes its channels from.
    """

    name: str
    inputs: tuple[str, ...]
    channels: tuple[str, int]
    plan: Callable[[Shapes, bool, bool, int], Plan]

    def arguments(self, residual: bool) -> tuple[str, ...]:
        """Names of all inputs, in the kernel's order."""
        return (*self.inputs, RESIDUAL) if residual else self.inputs

    def is_map(self, argument: str) -> bool:
        """Whether the argument is [N, C, H, W] and shares its layout with the result."""
        return argument in (self.inputs[0], RESIDUAL)


def _pixels(shape: Shape) -> int:
    return shape[2] * shape[3]


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "FusedECA",
            ("x", "w"),
            ("x", 1),
            lambda s, nhwc, relu, _: fused_eca.plan(s["x"][1], _pixels(s["x"]), s["w"][0], nhwc, relu),
        ),
        Operator(
            "ScaleAddReLU",
            ("x", "gate"),
            ("x", 1),
            lambda s, nhwc, relu, _: scale_add_relu.plan(s["x"][1], _pixels(s["x"]), nhwc, relu),
        ),
        Operator(
            "GatedConv1x1",
            ("h", "weight", "bias", "gate"),
            ("weight", 0),
            lambda s, nhwc, relu, value_bytes: gated_conv1x1.plan(
                s["h"][1], s["weight"][0], _pixels(s["h"]), nhwc, relu, value_bytes
            ),
        ),
    )
}
