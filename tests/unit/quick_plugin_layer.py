"""Runs our quick plugins through TensorRT's own Python plugin layer, in a process of its own.

    LD_LIBRARY_PATH=<empty libraries of TensorRT's names> python -m tests.unit.quick_plugin_layer ANSWERS.json

The layer is the bindings' own code, unchanged; what TensorRT's C++ would do beneath it, evaluate shape expressions, is
`Evaluator` here. The bindings are linked against TensorRT's libraries, which no wheel of theirs holds: nothing of those
is called, so empty ones of the same names do.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt
import tensorrt_bindings.plugin as trtp

sys.modules["tensorrt.plugin"] = trtp
from eca_plugin import quick_plugins
from tensorrt_bindings.plugin import _lib, _tensor

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "FusedECA": [(-1, 256, 56, 56), (5,)],
    "ScaleAddReLU": [(-1, 256, 56, 56), (-1, 256)],
    "GatedConv1x1": [(-1, 64, 56, 56), (256, 64), (256,), (-1, 256)],
}
ODD = {"FusedECA": [(-1, 12, 7, 7), (3,)]}
SMALL: dict[str, list[tuple[int, ...]]] = {
    "FusedECA": [(-1, 40, 5, 7), (5,)],
    "ScaleAddReLU": [(-1, 40, 5, 7), (-1, 40)],
    "GatedConv1x1": [(-1, 24, 5, 7), (40, 24), (40,), (-1, 40)],
}
BATCH = 3
CHIP = 90 if shutil.which("nvcc") else None  # whose kernels with clusters need nvcc


class Number:
    """A shape expression that is known."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class Evaluator:
    """Stands for TensorRT's builder of shape expressions: computes at once."""

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: Any, first: Number, second: Number) -> Any:
        a, b = first.value, second.value
        kinds = trt.DimensionOperation
        result = {kinds.PROD: a * b, kinds.SUM: a + b, kinds.CEIL_DIV: -(-a // b), kinds.FLOOR_DIV: a // b}[operation]
        return expression(result)


def expression(value: int) -> Any:
    made = _tensor.SymIntExpr()
    made._int_expr = Number(value)
    return made


def described(shape: tuple[int, ...], dtype: Any, layout: Any) -> tuple[Any, Any]:
    """The layer's tensor description, and the C++ one, of one input or output."""
    tensor = trtp.TensorDesc()
    tensor.dtype = dtype
    tensor.shape_expr = _tensor.ShapeExprs(len(shape))
    for axis, extent in enumerate(shape):
        tensor.shape_expr[axis] = _tensor.ShapeExpr(expression(BATCH if extent < 0 else extent))
    dynamic = trt.DynamicPluginTensorDesc()
    inner = trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format = trt.Dims(shape), dtype, layout
    dynamic.desc = inner
    return tensor, dynamic


def created(name: str) -> Any:
    """The plugin as the layer's creator makes it of what TensorRT's ONNX parser read: an int32 attribute."""
    given = trt.PluginFieldCollection([trt.PluginField("relu", np.array([1], np.int32), trt.PluginFieldType.INT32)])
    creator = _lib._TemplatePluginCreator(name.split("::")[1], "eca", {"relu": (True, bool)})
    how = trt.QuickPluginCreationRequest.STRICT_AOT
    return creator.create_plugin(name.split("::")[1], "eca", given, trt.TensorRTPhase.BUILD, how)


def answers(name: str, shapes: list[tuple[int, ...]], dtype: Any, layout: Any, tactic: int = -1) -> dict[str, Any]:
    """What the plugin tells TensorRT for one type and layout."""
    definition = _lib.QDP_REGISTRY[name]
    residual = name.endswith("Residual")
    channels = shapes[1][0] if len(shapes) == 4 else shapes[0][1]
    result = (shapes[0][0], channels, *shapes[0][2:])
    shapes = [*shapes, result] if residual else shapes
    plugin = created(name)
    assert plugin.attrs == {"relu": True}
    types = plugin.get_output_data_types([dtype] * len(shapes), [len(shape) for shape in shapes])
    _tensor.SymIntExpr._exprBuilder = Evaluator()
    both = [
        described(shape, dtype, layout if len(shape) == 4 else trt.TensorFormat.LINEAR) for shape in [*shapes, result]
    ]
    plugin.input_descs = [tensor for tensor, _ in both[:-1]]
    plugin.output_descs = (definition.register_func(*plugin.input_descs, relu=1),)
    in_out = [dynamic for _, dynamic in both]
    combinations = plugin.get_supported_format_combinations(in_out, len(shapes))
    offered = [list(tactics) for tactics in plugin.supported_combs.values()]
    if tactic < 0:
        tactic = offered[-1][-1] if layout == trt.TensorFormat.HWC8 else 0  # the last, or the one without autotuning
    plugin.set_tactic(tactic)
    launch, scalars = SimpleNamespace(), Scalars()
    plugin.get_launch_params([], in_out, len(shapes), launch, scalars, Evaluator())
    (kernel,) = plugin.kernel_map.values()
    return {
        "types": [kind.name for kind in types],
        "shape": [axis._expr.value for axis in plugin.output_descs[0].shape_expr],
        "combinations": [[kind.type.name, kind.format.name] for kind in combinations],
        "inputs": len(shapes),
        "tactics": offered,
        "launch": vars(launch),
        "scalars": scalars.values,
        "kernel": kernel,
    }


class Scalars:
    """Stands for TensorRT's list of a kernel's scalars."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def __setitem__(self, index: int, value: int) -> None:
        assert index == len(self.values)
        self.values.append(value)


def main(target: Path) -> None:
    """Writes every answer. All tactics are taken to compile: to try that takes minutes, and is tested for one."""
    vars(quick_plugins)["compiles"] = lambda plan, dtype, residual: True
    _tensor.SymExprImpl = lambda expression: expression._expr.value  # C++ takes over here
    names = quick_plugins.register(trt, trtp, CHIP, at_once=False)
    assert quick_plugins.register(trt, trtp, CHIP, at_once=False) == names, "a second registration changes nothing"
    found: dict[str, Any] = {"names": names, "version": trt.__version__}
    for name in names:
        operator = name.split("::")[1].removesuffix("Residual")
        for dtype in (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16):
            for layout in (trt.TensorFormat.LINEAR, trt.TensorFormat.HWC8):
                chosen = dtype == trt.DataType.HALF or (operator == "FusedECA" and layout == trt.TensorFormat.LINEAR)
                if chosen:  # the others would only take longer
                    found[f"{name} {dtype.name} {layout.name}"] = answers(name, SHAPES[operator], dtype, layout)
    found["odd"] = answers("eca::FusedECA", ODD["FusedECA"], trt.DataType.HALF, trt.TensorFormat.LINEAR)
    for operator, shapes in SMALL.items():
        for suffix in ("", "Residual"):
            small = answers(f"eca::{operator}{suffix}", shapes, trt.DataType.HALF, trt.TensorFormat.HWC8, tactic=1)
            found[f"small {operator}{suffix}"] = small
    target.write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
