"""ONNX models for runtimes that lack something: custom nodes into plain operators, bfloat16 into float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from eca_plugin import NAMESPACE
from onnx.inliner import inline_local_functions

# What each node computes before the residual and the ReLU, in ONNX's text format.
BODIES = {
    "FusedECA": (
        "x, w",
        """
        channels = Constant<value_ints = [1]>()
        plane = Constant<value_ints = [2, 3]>()
        taps_shape = Constant<value_ints = [1, 1, -1]>()
        pooled = ReduceMean<keepdims = 0>(x, plane)
        row = Unsqueeze(pooled, channels)
        taps = Reshape(w, taps_shape)
        mixed = Conv<auto_pad = "SAME_UPPER">(row, taps)
        flat = Squeeze(mixed, channels)
        sigmoid = Sigmoid(flat)
        gate = Unsqueeze(sigmoid, plane)
        scaled = Mul(x, gate)
        """,
    ),
    "ScaleAddReLU": (
        "x, g",
        """
        plane = Constant<value_ints = [2, 3]>()
        gate = Unsqueeze(g, plane)
        scaled = Mul(x, gate)
        """,
    ),
    "GatedConv1x1": (
        "h, w, b, g",
        """
        plane = Constant<value_ints = [2, 3]>()
        kernel = Unsqueeze(w, plane)
        x = Conv(h, kernel, b)
        gate = Unsqueeze(g, plane)
        scaled = Mul(x, gate)
        """,
    ),
}


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose nodes of domain `eca` are the plain operators that define them."""
    lowered = inline_local_functions(custom_nodes_as_functions(model))
    keep = [entry for entry in lowered.opset_import if entry.domain == ""]
    del lowered.opset_import[:]
    lowered.opset_import.extend(keep)
    return lowered


def custom_nodes_as_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that brings its custom nodes' definitions along: onnxruntime runs it, with the nodes as one."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    variants: dict[str, tuple[str, bool, bool]] = {}
    for node in whole.graph.node:
        if node.domain == NAMESPACE:
            inputs, _ = BODIES[node.op_type]
            residual = len(node.input) > inputs.count(",") + 1
            relu = any(attribute.name == "relu" and attribute.i for attribute in node.attribute)
            del node.attribute[:]
            variant = f"{node.op_type}_{residual:d}{relu:d}"
            variants[variant] = (node.op_type, residual, relu)
            node.op_type = variant
    whole.functions.extend(_function(name, *variant, opset) for name, variant in variants.items())
    return whole


def restore_custom_nodes(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Undoes `custom_nodes_as_functions` in place, whatever else was done to its copy of `original` since."""
    custom = {node.name: node for node in original.graph.node if node.domain == NAMESPACE}
    for node in model.graph.node:
        if node.domain == NAMESPACE:
            node.op_type = custom[node.name].op_type
            node.attribute.extend(custom[node.name].attribute)
    del model.functions[:]


def lower_file(path: Path, widen: bool = False) -> None:
    """`lower` for the ONNX file at `path`, in place, then `widened` if asked; what needs neither stays as it is."""
    model = onnx.load(path)
    if any(node.domain == NAMESPACE for node in model.graph.node):
        model = lower(model)
    elif not widen:
        return
    onnx.save(widened(model) if widen else model, path)


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that computes in float32 what it computes in bfloat16, with the same, rounded weights."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    narrow, to = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for tensor in wide.graph.initializer:
        if tensor.data_type == narrow:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == narrow:
                attribute.i = to
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == narrow:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    for info in (*wide.graph.value_info, *wide.graph.input, *wide.graph.output):
        if info.type.tensor_type.elem_type == narrow:
            info.type.tensor_type.elem_type = to
    return wide


def _function(name: str, operator: str, residual: bool, relu: bool, opset: int) -> onnx.FunctionProto:
    inputs, body = BODIES[operator]
    inputs += ", r" if residual else ""
    body += "summed = Add(scaled, r)" if residual else "summed = Identity(scaled)"
    body += "\ny = Relu(summed)" if relu else "\ny = Identity(summed)"
    return onnx.parser.parse_function(
        f'<domain: "{NAMESPACE}", opset_import: ["" : {opset}]> {name} ({inputs}) => (y) {{ {body} }}'
    )
