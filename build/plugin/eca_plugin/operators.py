"""The three operators on PyTorch tensors: each launches its kernel once, the way that `tuning` found to be the fastest.

x, h, residual and the result are [N, C, H, W] in the same layout, contiguous (NCHW) or channels_last (NHWC), and share
one type, float32, float16 or bfloat16, with weight, bias and gate. Arithmetic is in float32. The tensors lie on a GPU;
on a CPU only under Triton's interpreter. Raises ValueError for arguments that contradict this or each other.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import triton
from torch import Tensor

from eca_plugin import driver, tuning
from eca_plugin.ahead_of_time import Type, compile_plan
from eca_plugin.descriptor import OPERATORS
from eca_plugin.plan import Plan
from eca_plugin.tuning import Site

MOST_IMAGES = 65535  # the second axis of a grid
MOST_VALUES = 2**31 - 1  # of an image, whose offsets are int32; of a GatedConv1x1's pixels, gates and weights too
BEYOND = 127  # pixels that the last block of 128 may have behind the last one: their numbers are int32 too
NAMES: dict[torch.dtype, Type] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def fused_eca(x: Tensor, weight: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """act(x * sigmoid(conv1d(mean(x), weight)) + residual), weight [k], k odd, 1 to 9, zeros beyond the channels."""
    nhwc = _layout(x, residual, (weight,))
    return _launch("FusedECA", (x, weight), residual, torch.empty_like(x), nhwc, relu)


def scale_add_relu(x: Tensor, gate: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """act(x * gate + residual), gate [N, C]."""
    nhwc = _layout(x, residual, (gate,))
    if gate.shape != x.shape[:2]:
        raise ValueError(f"a gate of shape {tuple(gate.shape)} does not fit a map of shape {tuple(x.shape)}")
    return _launch("ScaleAddReLU", (x, gate), residual, torch.empty_like(x), nhwc, relu)


def gated_conv1x1(
    h: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """act((weight h + bias) * gate + residual), h [N, I, H, W], weight [C, I], bias [C], gate [N, C]."""
    shape = torch.Size((h.shape[0], weight.shape[0], *h.shape[2:]))
    nhwc = _layout(h, None, (weight, bias, gate))
    _require_countable(shape)
    if weight.shape[1:] != h.shape[1:2] or bias.shape != weight.shape[:1] or gate.shape != shape[:2]:
        raise ValueError(
            f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} and gate {tuple(gate.shape)} do not fit "
            f"a map of shape {tuple(h.shape)}"
        )
    pixels = shape[0] * math.prod(shape[2:]) + BEYOND
    counts = (pixels, math.prod(gate.shape), math.prod(weight.shape))
    if any(count > MOST_VALUES for count in counts):
        raise ValueError(
            f"a call has up to {MOST_VALUES} pixels, gates and weights each, not those of a map of {tuple(shape)} and "
            f"weight {tuple(weight.shape)}; split it"
        )
    out = torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=_format(nhwc))
    if residual is not None:
        _layout(out, residual, ())
    return _launch("GatedConv1x1", (h, weight, bias, gate), residual, out, nhwc, relu)


def _format(nhwc: bool) -> torch.memory_format:
    return torch.channels_last if nhwc else torch.contiguous_format


def _layout(x: Tensor, residual: Tensor | None, others: tuple[Tensor, ...]) -> bool:
    """Whether `x` is NHWC, after the checks that all operators share."""
    beside = others if residual is None else (*others, residual)
    if x.dtype not in NAMES or any(t.dtype != x.dtype for t in beside):
        raise ValueError("all arguments share one type: float32, float16 or bfloat16")
    devices = {str(t.device) for t in (x, *beside)}
    if len(devices) > 1:  # a kernel is given addresses, and would read others
        raise ValueError(f"all arguments lie on one device, not on {' and '.join(sorted(devices))}")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"a map has four dimensions, none empty, not {tuple(x.shape)}")
    _require_countable(x.shape)
    nhwc = not x.is_contiguous()
    if not x.is_contiguous(memory_format=_format(nhwc)) or not all(t.is_contiguous() for t in others):
        raise ValueError("maps are contiguous or channels_last, all other arguments contiguous")
    if residual is not None and (residual.shape != x.shape or not residual.is_contiguous(memory_format=_format(nhwc))):
        raise ValueError("the residual has the shape and the layout of the result")
    return nhwc


def _require_countable(shape: torch.Size) -> None:
    if shape[0] > MOST_IMAGES or math.prod(shape[1:]) > MOST_VALUES:
        raise ValueError(
            f"a map has up to {MOST_IMAGES} images of up to {MOST_VALUES} values, not {tuple(shape)}; split it"
        )


def _launch(
    name: str, inputs: tuple[Tensor, ...], residual: Tensor | None, out: Tensor, nhwc: bool, relu: bool
) -> Tensor:
    shapes = dict(zip(OPERATORS[name].inputs, (tuple(tensor.shape) for tensor in inputs), strict=True))
    site = tuning.site(name, shapes, NAMES[out.dtype], nhwc, residual is not None, relu)
    traced = type(out) is not Tensor
    with nullcontext() if traced else torch.cuda.device_of(out):  # of several GPUs, the one that holds the tensors
        launch(tuning.plan_of(site, traced), site, inputs, residual, out)
    return out


def launch(plan: Plan, site: Site, inputs: tuple[Tensor, ...], residual: Tensor | None, out: Tensor) -> None:
    """Starts `plan` for `site` on the current stream of the current device, on which the tensors lie.

    Raises KernelError where it cannot be compiled.
    """
    batch = inputs[0].shape[0]
    scalars = () if plan.rows_per_block is None else (plan.rows(batch),)
    if not plan.is_cuda:
        kernel = plan.kernel if triton.knobs.runtime.interpret else torch.library.wrap_triton(plan.kernel)
        options = {"num_warps": plan.warps, "num_stages": plan.stages}
        kernel[plan.grid(batch)](*inputs, residual, *scalars, out, **plan.constants, **options)
        return
    given = inputs if residual is None else (*inputs, residual)
    addresses = [tensor.data_ptr() for tensor in given]
    stream = torch.cuda.current_stream().cuda_stream
    compiled = compile_plan(plan, site.dtype, site.residual)
    driver.launch(compiled, plan.grid(batch), addresses, scalars, out.data_ptr(), stream)
