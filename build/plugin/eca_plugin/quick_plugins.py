"""The operators as TensorRT's quickly deployable plugins, whose kernels go into the engine as PTX.

An engine with them needs neither Python nor a plugin library. TensorRT reads the functions' signatures, types included,
so they are made at run time, for the `tensorrt` module that is there. Each way to launch a kernel is a tactic: TensorRT
times them in place and takes the fastest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from eca_plugin import NAMESPACE
from eca_plugin.ahead_of_time import Type, compile_plan, compiles
from eca_plugin.descriptor import OPERATORS, VALUE_BYTES, WITH_RESIDUAL, Operator
from eca_plugin.plan import Plan

# TensorRT before 11.3 calls the type with an array of one number, which NumPy 2.4 lets bool take, and int no more.
RELU = ("relu", bool)


def register(
    tensorrt: ModuleType, plugin: ModuleType, chip: int | None = None, at_once: bool = True
) -> tuple[str, ...]:
    """Registers all plugins with `tensorrt` and `tensorrt.plugin`, once; their names, `eca::FusedECA` and so on.

    `chip` is the compute capability (90 is 9.0) of the GPU that the engine is built for, where kernels for it alone may
    be among the tactics.

    `at_once` puts them into TensorRT's own registry, where its ONNX parser looks; else that waits for their first use
    in Python. Those with a residual are called FusedECAResidual and so on. An engine build then raises KernelError
    where a kernel cannot be compiled, ValueError where a shape has no kernel.
    """
    names = []
    for operator in OPERATORS.values():
        for residual in (False, True):
            name = f"{NAMESPACE}::{operator.name}{WITH_RESIDUAL if residual else ''}"
            names.append(name)
            if not hasattr(plugin.op.define_or_get(NAMESPACE), name.split("::")[1]):
                _register(tensorrt, plugin, name, operator, residual, chip, at_once)
    return tuple(names)


def _register(
    trt: ModuleType, plugin: Any, name: str, operator: Operator, residual: bool, chip: int | None, at_once: bool
) -> None:
    arguments = operator.arguments(residual)
    types: dict[Any, Type] = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}

    def plans_of(tensors: list[Any], dtype: Type, nhwc: bool, relu: bool) -> tuple[Plan, ...]:
        shapes = {argument: tuple(tensor.shape) for argument, tensor in zip(arguments, tensors, strict=True)}
        first = shapes[operator.inputs[0]]
        if min(first[1:]) < 1:
            raise ValueError(f"{name}: all but the batch must be fixed, not {first}; export with a fixed crop")
        return operator.plans(shapes, nhwc, relu, VALUE_BYTES[dtype], chip)

    def describe(*tensors: Any, relu: bool) -> Any:
        given = dict(zip(arguments, tensors, strict=True))
        first = tensors[0]
        source, axis = operator.channels
        shape = (first.shape_expr[0], given[source].shape_expr[axis], *(first.shape_expr[i] for i in (2, 3)))
        return plugin.from_shape_expr(shape, first.dtype)

    def combinations(*given: Any) -> Any:
        *tensors, relu, _outputs = given
        dtype = types[tensors[0].dtype]
        layouts = [["LINEAR"] * (len(arguments) + 1)]
        channels = [tensors[0].shape[1], dict(zip(arguments, tensors, strict=True))[operator.channels[0]].shape]
        whole = channels[0] % 8 == 0 and channels[1][operator.channels[1]] % 8 == 0
        if dtype != "fp32" and whole:  # elsewhere HWC8 has padding between the pixels
            layouts.append(["HWC8" if operator.is_map(argument) else "LINEAR" for argument in arguments] + ["HWC8"])
        kinds = ",".join([dtype.upper()] * (len(arguments) + 1))
        made = []
        for layout in layouts:
            plans = plans_of(tensors, dtype, layout[-1] == "HWC8", relu)
            if layout[-1] == "LINEAR" and len(layouts) > 1:  # no network in a 16-bit type is fast in this layout
                plans = plans[:1]
            tactics = [number for number, plan in enumerate(plans, 1) if compiles(plan, dtype, residual)]
            made.append(plugin.AutoTuneCombination(kinds, ",".join(layout), tactics))
        return made

    def kernel(*given: Any) -> Any:
        *tensors, relu, _outputs, tactic = given
        dtype = types[tensors[0].dtype]
        plan = plans_of(tensors, dtype, tensors[0].format == trt.TensorFormat.HWC8, relu)[max(tactic, 1) - 1]
        compiled = compile_plan(plan, dtype, residual)
        batch = tensors[0].shape_expr[0]
        launch = plugin.KernelLaunchParams()
        launch.block_x = compiled.threads
        launch.shared_mem = compiled.shared_bytes
        if plan.rows_per_block is None:
            launch.grid_x = plan.blocks
            launch.grid_y = batch
            scalars = plugin.SymIntExprs(0)
        else:
            rows = batch * plan.constants["PIXELS"]
            launch.grid_x = plugin.cdiv(rows, plan.rows_per_block) * plan.blocks
            scalars = plugin.SymIntExprs(1)
            scalars[0] = plugin.SymInt32(rows)
        return compiled.name, compiled.ptx, launch, scalars

    tensor = plugin.TensorDesc
    inputs = [(argument, tensor) for argument in arguments]
    outputs = ("outputs", tuple[tensor])  # type: ignore[valid-type]
    plugin.register(name, lazy_register=not at_once)(_signed(describe, [*inputs, RELU], tensor))
    plugin.autotune(name)(_signed(combinations, [*inputs, RELU, outputs], list[plugin.AutoTuneCombination]))
    plugin.aot_impl(name)(
        _signed(
            kernel,
            [*inputs, RELU, outputs, ("tactic", int)],
            tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs],
        )
    )


def _signed(function: Callable[..., Any], parameters: list[tuple[str, Any]], result: Any) -> Callable[..., Any]:
    """`function` with the signature that TensorRT looks at."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters],
        return_annotation=result,
    )
    return function
