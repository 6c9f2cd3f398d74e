"""The three custom operators of the rewritten graphs: what each computes, and the ONNX node it is exported as.

Each is its definition in plain operators. Within `as_nodes` it is one ONNX node of domain `eca`, which TensorRT gives
to the plugin of that name (`plugin_namespace`; `aot` asks for the kernel inside the engine) and `lowering.lower` turns
back into plain operators for runtimes that have no plugin. Within `as_operators` it is PyTorch's operator
`torch.ops.eca`, which a GPU runs as one kernel.

Every one takes an optional `residual` of the output's shape, added before the optional ReLU. Types: all arguments of
one call share theirs, float32, float16 or bfloat16, and so does the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Literal, cast

import torch
import torch.nn.functional as F
from eca_plugin import NAMESPACE
from torch import Tensor

_form: Literal["definition", "operator", "node"] = "definition"


@contextmanager
def as_operators() -> Iterator[None]:
    """Within it a call is one of `torch.ops.eca`: for PyTorch on a GPU, and for programs exported from it."""
    import_module("eca_plugin.torch_operators")  # which defines them
    with _written_as("operator"):
        yield


@contextmanager
def as_nodes() -> Iterator[None]:
    """Within it a call is a node of ONNX: for programs that are to become a file."""
    with _written_as("node"):
        yield


@contextmanager
def _written_as(form: Literal["operator", "node"]) -> Iterator[None]:
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def fused_eca(x: Tensor, weight: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """x * sigmoid(conv1d(mean(x))): [N, C, H, W], weight [k] with k odd, zeros beyond the channels -> [N, C, H, W]."""
    if _form == "node":
        return _node("FusedECA", (x, weight), residual, relu, list(x.shape))
    if _form == "operator":
        return cast(Tensor, torch.ops.eca.fused_eca(x, weight, residual, relu))
    mixed = F.conv1d(x.mean((2, 3)).unsqueeze(1), weight.view(1, 1, -1), padding=len(weight) // 2)
    return _finish(x * mixed.squeeze(1).sigmoid()[:, :, None, None], residual, relu)


def scale_add_relu(x: Tensor, gate: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """x * gate: [N, C, H, W], gate [N, C] -> [N, C, H, W]."""
    if _form == "node":
        return _node("ScaleAddReLU", (x, gate), residual, relu, list(x.shape))
    if _form == "operator":
        return cast(Tensor, torch.ops.eca.scale_add_relu(x, gate, residual, relu))
    return _finish(x * gate[:, :, None, None], residual, relu)


def gated_conv1x1(h: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """(weight h + bias) * gate: h [N, I, H, W], weight [O, I], bias [O], gate [N, O] -> [N, O, H, W]."""
    if _form == "node":
        return _node("GatedConv1x1", (h, weight, bias, gate), residual, relu, [h.shape[0], len(weight), *h.shape[2:]])
    if _form == "operator":
        return cast(Tensor, torch.ops.eca.gated_conv1x1(h, weight, bias, gate, residual, relu))
    y = F.conv2d(h, weight[:, :, None, None], bias)
    return _finish(y * gate[:, :, None, None], residual, relu)


def _finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def _node(
    name: str, inputs: tuple[Tensor, ...], residual: Tensor | None, relu: bool, shape: list[int | torch.SymInt]
) -> Tensor:
    node: Tensor = torch.onnx.ops.symbolic(
        f"{NAMESPACE}::{name}",
        inputs if residual is None else (*inputs, residual),
        {"relu": int(relu), "aot": 1, "plugin_namespace": NAMESPACE},
        dtype=inputs[0].dtype,
        shape=shape,
        version=1,
    )
    return node
