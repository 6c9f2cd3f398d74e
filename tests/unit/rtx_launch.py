"""Has TensorRT-RTX's plugins start their kernels on a CPU, in a process that finds TensorRT-RTX's libraries.

    python -m tests.unit.rtx_launch

prints by how much each operator's result is off its definition in float64, with a residual and without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorrt_rtx_bindings as trt
import torch
from eca_plugin import driver, rtx_plugins
from eca_plugin.descriptor import TORCH_NAMES
from torch import Tensor

from tests.unit.kernel_cases import Case, arguments, exact
from tests.unit.ptx_driver import Driver


def described(tensor: Tensor, nhwc: bool) -> Any:
    """What TensorRT-RTX tells a plugin of a tensor."""
    found = trt.PluginTensorDesc()
    found.dims, found.type = trt.Dims(tuple(tensor.shape)), trt.DataType.HALF
    found.format = trt.TensorFormat.HWC8 if nhwc and tensor.dim() == 4 else trt.TensorFormat.LINEAR
    return found


def difference(creator: Any, case: Case) -> float:
    """From the definition, of what the plugin that `creator` makes writes."""
    emulated = Driver()
    driver._library = lambda: emulated  # type: ignore[assignment]
    inputs, residual = arguments(case)
    given = [*inputs, *([] if residual is None else [residual])]
    out = torch.full_like(exact(case), torch.nan, dtype=torch.float16)
    relu = trt.PluginField("relu", np.array([case.relu], np.int32), trt.PluginFieldType.INT32)
    plugin = creator.create_plugin("", trt.PluginFieldCollection([relu]), trt.TensorRTPhase.RUNTIME)
    descriptions = [described(tensor, case.nhwc) for tensor in given]
    made = [described(out, case.nhwc)]
    plugin.enqueue(descriptions, made, list(map(emulated.add, given)), [emulated.add(out)], 0, 0)
    assert emulated.launches == 1
    return float((out.double() - exact(case)).abs().max())


if __name__ == "__main__":
    names = {name: operator for operator, name in TORCH_NAMES.items()}
    for creator in rtx_plugins.register(trt):
        for nhwc, residual in ((True, True), (False, False)):
            case = Case(names[creator.name], "float16", 3, 40, 5, 7, nhwc, residual, residual, taps=5)
            print(difference(creator, case._replace(inputs=24 * (creator.name == "GatedConv1x1"))))
