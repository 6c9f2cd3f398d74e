"""The operators as plugins of TensorRT-RTX, in Python: it has no quickly deployable ones.

The kernel is compiled and launched when the engine runs, so the process that runs one registers them too.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np

from eca_plugin import NAMESPACE, driver
from eca_plugin.ahead_of_time import Type, compile_plan
from eca_plugin.descriptor import OPERATORS, VALUE_BYTES, VERSION, Operator


def register(trt: ModuleType) -> list[Any]:
    """Registers a creator for each operator with the module `tensorrt_rtx`; the creators, to be kept alive."""
    types: dict[Any, Type] = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[name-defined, misc]
        """One node: `relu` is its attribute, a residual is there where it has an input more."""

        def __init__(self, operator: Operator, relu: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.operator = operator
            self.relu = relu
            self.num_outputs = 1
            self.plugin_name = operator.name
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION

        def get_capability_interface(self, _kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            made = Plugin(self.operator, self.relu)
            made.__dict__.update(copy.copy(self.__dict__))
            return made

        def attach_to_context(self, _context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            field = trt.PluginField("relu", np.array([self.relu], np.int32), trt.PluginFieldType.INT32)
            return trt.PluginFieldCollection([field])

        def get_output_data_types(self, input_types: list[Any]) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: list[Any], _shape_inputs: Any, _builder: Any) -> list[Any]:
            shape = trt.DimsExprs(inputs[0])
            source, axis = self.operator.channels
            shape[1] = inputs[self.operator.inputs.index(source)][axis]
            return [shape]

        def supports_format_combination(self, position: int, in_out: list[Any], _inputs: int) -> bool:
            mine, first = in_out[position].desc, in_out[0].desc
            is_map = position in (0, len(in_out) - 1) or position >= len(self.operator.inputs)
            formats = {trt.TensorFormat.LINEAR} | (
                {trt.TensorFormat.HWC8} if first.type != trt.DataType.FLOAT else set()
            )
            same = mine.format == first.format if is_map else mine.format == trt.TensorFormat.LINEAR
            whole = mine.format == trt.TensorFormat.LINEAR or mine.dims[1] % 8 == 0
            return bool(mine.type in types and mine.type == first.type and mine.format in formats and same and whole)

        def configure_plugin(self, _inputs: Any, _outputs: Any) -> None:
            pass

        def on_shape_change(self, _inputs: Any, _outputs: Any) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, _tactic: int) -> None:
            pass

        def enqueue(
            self, given: list[Any], _made: Any, inputs: list[int], outputs: list[int], _workspace: int, stream: int
        ) -> None:
            residual = len(given) > len(self.operator.inputs)
            dtype = types[given[0].type]
            names = self.operator.arguments(residual)
            shapes = {name: tuple(desc.dims) for name, desc in zip(names, given, strict=True)}
            nhwc = given[0].format == trt.TensorFormat.HWC8
            plan = self.operator.plans(shapes, nhwc, bool(self.relu), VALUE_BYTES[dtype], None)[0]
            batch = given[0].dims[0]
            scalars = () if plan.rows_per_block is None else (plan.rows(batch),)
            driver.launch(compile_plan(plan, dtype, residual), plan.grid(batch), inputs, scalars, outputs[0], stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[name-defined, misc]
        """Makes the plugin of one operator from an ONNX node or from an engine."""

        def __init__(self, operator: Operator) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.operator = operator
            self.name = operator.name
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            field = trt.PluginField("relu", np.array([], np.int32), trt.PluginFieldType.INT32)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, _name: str, fields: Any, _phase: Any) -> Any:
            return Plugin(self.operator, next((int(f.data[0]) for f in fields if f.name == "relu"), 0))

    creators = [Creator(operator) for operator in OPERATORS.values()]
    for creator in creators:
        trt.get_plugin_registry().register_creator(creator, NAMESPACE)
    return creators
