"""The kernel of GatedConv1x1: a 1x1 convolution on the tensor cores, its gate, residual and ReLU in the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.plan import Plan, power_of_two


@triton.jit
def gated_conv1x1(
    h,
    weight,  # [CHANNELS, INPUTS]
    bias,
    gate,
    residual,  # None where nothing is added
    rows,  # N PIXELS, int32
    out,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NHWC: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """One program: BLOCK_ROWS pixels by BLOCK_CHANNELS channels; grid (ceil(rows / BLOCK_ROWS) * channel blocks,).

    Pixels of all images are one axis, so that small maps fill their blocks. Programs that share pixels are neighbours.
    """
    channel_blocks: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    program = tl.program_id(0)
    row = (program // channel_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = (program % channel_blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row_inside = row < rows
    channel_inside = channel < CHANNELS
    image = row // PIXELS
    if NHWC:
        h_row = row.to(tl.int64) * INPUTS
        out_row = row.to(tl.int64) * CHANNELS
    else:
        h_row = image.to(tl.int64) * (INPUTS * PIXELS) + row % PIXELS
        out_row = image.to(tl.int64) * (CHANNELS * PIXELS) + row % PIXELS
    stride: tl.constexpr = 1 if NHWC else PIXELS

    y = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, INPUTS, BLOCK_INPUTS):
        inputs = start + tl.arange(0, BLOCK_INPUTS)
        input_inside = inputs < INPUTS
        a = tl.load(
            h + h_row[:, None] + inputs[None, :] * stride, mask=row_inside[:, None] & input_inside[None, :], other=0.0
        )
        b = tl.load(
            weight + channel[None, :] * INPUTS + inputs[:, None],
            mask=channel_inside[None, :] & input_inside[:, None],
            other=0.0,
        )
        y = tl.dot(a, b, y, input_precision="ieee")

    inside = row_inside[:, None] & channel_inside[None, :]
    y += tl.load(bias + channel, mask=channel_inside, other=0.0).to(tl.float32)[None, :]
    y *= tl.load(gate + image[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    at = out_row[:, None] + channel[None, :] * stride
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # keeps NaN, as PyTorch does
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


def plan(inputs: int, channels: int, pixels: int, nhwc: bool, relu: bool, value_bytes: int) -> Plan:
    """How `gated_conv1x1` is launched on maps of that shape, whose values have 2 or 4 bytes."""
    rows = 64 if value_bytes == 2 else 32  # 64 rows of four bytes need more registers than there are
    block = max(16, min(64, power_of_two(channels)))
    return Plan(
        kernel=gated_conv1x1,
        constants={
            "INPUTS": inputs,
            "CHANNELS": channels,
            "PIXELS": pixels,
            "NHWC": nhwc,
            "RELU": relu,
            "BLOCK_ROWS": rows,
            "BLOCK_CHANNELS": block,
            "BLOCK_INPUTS": 32,
        },
        blocks=-(-channels // block),
        warps=4,
        rows_per_block=rows,
        stages=3,
    )
