"""The kernels alone: whether they are right on this hardware, and how near to the speed of a copy they come."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from eca_build import custom_nodes
from eca_plugin.ahead_of_time import Compiled
from eca_plugin.descriptor import TORCH_NAMES
from eca_plugin.plan import Plan
from eca_plugin.timing import Spread
from eca_plugin.tuner import Call, Kernels, calls, time_plans
from eca_plugin.tuning import Site
from torch import Tensor

from tests.gpu.sites import FUSED

DEFINITION = {TORCH_NAMES[name]: getattr(custom_nodes, name) for name in FUSED.values()}
# The largest difference from float64 that is rounding: of inputs up to 1, through a product of up to 2048 of them.
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}


def exact(call: Call) -> Tensor:
    """The operator's definition in float64."""
    wide = [tensor.double() for tensor in call.inputs]
    residual = None if call.residual is None else call.residual.double()
    result: Tensor = DEFINITION[call.site.operator](*wide, residual, call.site.relu)
    return result


def launches(site: Site, chip: int | None, kernels: Kernels) -> Iterator[tuple[Plan, Compiled | None, str]]:
    """What is to be tried at a site, and its name.

    Every kernel is launched through the driver, as TensorRT would, and the first of each site through PyTorch's
    operator too, whose compiler takes its time; without a GPU all go the latter way.
    """
    for number, plan in enumerate(site.plans(chip)):
        compiled = kernels.get((site, plan.label))
        if compiled:
            yield plan, compiled, name(site, plan)
        if chip is None or (compiled and number == 0):
            yield plan, None, f"{name(site, plan)}, by PyTorch"


def name(site: Site, plan: Plan) -> str:
    """A kernel of a site, on one line."""
    return f"{site.key}: {plan.label}"


def difference(call: Call, expected: Tensor, plan: Plan, compiled: Compiled | None) -> float:
    """The largest difference from `expected`, float64, of what is launched; infinite where it wrote no number."""
    call.out.fill_(torch.nan)
    call.launch(plan, compiled)
    return float((call.out.double() - expected).abs().nan_to_num(torch.inf).max())


def bandwidths(
    site: Site, batch: int, kernels: Kernels, chip: int | None, cache_bytes: int, seconds: float
) -> tuple[int, bool, dict[str, Spread]]:
    """Bytes that one launch must move, whether they come from memory each time and not from the L2 cache, and its
    seconds by plan, the fastest first.
    """
    sets = calls(site, batch, cache_bytes, "cuda")
    cold = len(sets) * sets[0].bytes > cache_bytes
    return sets[0].bytes, cold, time_plans(sets, site.plans(chip), kernels, seconds)
