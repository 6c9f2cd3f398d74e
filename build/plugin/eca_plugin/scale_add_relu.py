"""The kernel of ScaleAddReLU: a map times its gate, plus a residual, through a ReLU."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.plan import Plan

BLOCKS = ((2048, 8), (2048, 4), (4096, 8), (1024, 4), (8192, 8))  # values of a program and its warps


@triton.jit
def scale_add_relu(
    x,
    gate,
    residual,  # None where nothing is added
    out,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NHWC: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK values of one image that lie beside each other; grid (ceil(CHANNELS PIXELS / BLOCK), N)."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < CHANNELS * PIXELS
    start = image * (CHANNELS * PIXELS)
    channel = at % CHANNELS if NHWC else at // PIXELS
    y = tl.load(x + start + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y *= tl.load(gate + image * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        other = tl.load(residual + start + at, mask=inside, other=0.0, eviction_policy="evict_first")
        y += other.to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as PyTorch does
    tl.store(out + start + at, y.to(out.dtype.element_ty), mask=inside)


def plans(channels: int, pixels: int, nhwc: bool, relu: bool) -> tuple[Plan, ...]:
    """The ways to launch `scale_add_relu` on maps of that shape, the one without measurement first."""
    return tuple(
        Plan(
            kernel=scale_add_relu,
            constants={"CHANNELS": channels, "PIXELS": pixels, "NHWC": nhwc, "RELU": relu, "BLOCK": block},
            blocks=-(-channels * pixels // block),
            warps=warps,
            label=f"triton {block}, {warps} warps",
        )
        for block, warps in BLOCKS
    )
