"""The operators as PyTorch's own, `torch.ops.eca`: for torch.compile, torch.export, AOTInductor and Torch-TensorRT.

They are opaque in an exported program, and Triton kernels to the compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eca_plugin import operators


@torch.library.triton_op("eca::fused_eca", mutates_args=())
def fused_eca(x: Tensor, weight: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """See `operators.fused_eca`."""
    return operators.fused_eca(x, weight, residual, relu)


@torch.library.triton_op("eca::scale_add_relu", mutates_args=())
def scale_add_relu(x: Tensor, gate: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """See `operators.scale_add_relu`."""
    return operators.scale_add_relu(x, gate, residual, relu)


@torch.library.triton_op("eca::gated_conv1x1", mutates_args=())
def gated_conv1x1(h: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """See `operators.gated_conv1x1`."""
    return operators.gated_conv1x1(h, weight, bias, gate, residual, relu)
