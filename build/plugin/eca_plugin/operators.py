"""The three operators on PyTorch tensors: each launches its kernel once.

x, h, residual and the result are [N, C, H, W] in the same layout, contiguous (NCHW) or channels_last (NHWC), and share
one type, float32, float16 or bfloat16, with weight, bias and gate. Arithmetic is in float32. The tensors lie on a GPU;
on a CPU only under Triton's interpreter. Raises ValueError for arguments that contradict this or each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eca_plugin import fused_eca as _fused_eca
from eca_plugin import gated_conv1x1 as _gated_conv1x1
from eca_plugin import scale_add_relu as _scale_add_relu
from eca_plugin.plan import Plan

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def fused_eca(x: Tensor, weight: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """act(x * sigmoid(conv1d(mean(x), weight)) + residual), weight [k], k odd, 1 to 9, zeros beyond the channels."""
    nhwc = _layout(x, residual, (weight,))
    plan = _fused_eca.plan(x.shape[1], x.shape[2] * x.shape[3], weight.numel(), nhwc, relu)
    return _launch(plan, x, (x, weight), residual, torch.empty_like(x))


def scale_add_relu(x: Tensor, gate: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """act(x * gate + residual), gate [N, C]."""
    nhwc = _layout(x, residual, (gate,))
    if gate.shape != x.shape[:2]:
        raise ValueError(f"a gate of shape {tuple(gate.shape)} does not fit a map of shape {tuple(x.shape)}")
    plan = _scale_add_relu.plan(x.shape[1], x.shape[2] * x.shape[3], nhwc, relu)
    return _launch(plan, x, (x, gate), residual, torch.empty_like(x))


def gated_conv1x1(
    h: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """act((weight h + bias) * gate + residual), h [N, I, H, W], weight [C, I], bias [C], gate [N, C]."""
    shape = torch.Size((h.shape[0], weight.shape[0], *h.shape[2:]))
    nhwc = _layout(h, None, (weight, bias, gate))
    if weight.shape[1:] != h.shape[1:2] or bias.shape != weight.shape[:1] or gate.shape != shape[:2]:
        raise ValueError(
            f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} and gate {tuple(gate.shape)} do not fit "
            f"a map of shape {tuple(h.shape)}"
        )
    out = torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=_format(nhwc))
    if residual is not None:
        _layout(out, residual, ())
    plan = _gated_conv1x1.plan(h.shape[1], shape[1], shape[2] * shape[3], nhwc, relu, h.element_size())
    return _launch(plan, h, (h, weight, bias, gate), residual, out)


def _format(nhwc: bool) -> torch.memory_format:
    return torch.channels_last if nhwc else torch.contiguous_format


def _layout(x: Tensor, residual: Tensor | None, others: tuple[Tensor, ...]) -> bool:
    """Whether `x` is NHWC, after the checks that all operators share."""
    if x.dtype not in TYPES or any(t.dtype != x.dtype for t in (*others, *([] if residual is None else [residual]))):
        raise ValueError("all arguments share one type: float32, float16 or bfloat16")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"a map has four dimensions, none empty, not {tuple(x.shape)}")
    nhwc = not x.is_contiguous()
    if not x.is_contiguous(memory_format=_format(nhwc)) or not all(t.is_contiguous() for t in others):
        raise ValueError("maps are contiguous or channels_last, all other arguments contiguous")
    if residual is not None and (residual.shape != x.shape or not residual.is_contiguous(memory_format=_format(nhwc))):
        raise ValueError("the residual has the shape and the layout of the result")
    return nhwc


def _launch(plan: Plan, x: Tensor, inputs: tuple[Tensor, ...], residual: Tensor | None, out: Tensor) -> Tensor:
    scalars = () if plan.rows_per_block is None else (plan.rows(x.shape[0]),)
    plan.kernel[plan.grid(x.shape[0])](
        *inputs, residual, *scalars, out, **plan.constants, num_warps=plan.warps, num_stages=plan.stages
    )
    return out
