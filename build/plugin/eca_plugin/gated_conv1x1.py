"""The kernel of GatedConv1x1: a 1x1 convolution on the tensor cores, its gate, residual and ReLU in the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.plan import Plan, power_of_two

WARP = 32
HOPPER = 90  # its own matrix instructions, wgmma, are in PTX for it alone
WGMMA = ", wgmma"  # ends the labels of the plans with them
# Rows, channels, inputs of a tile, warps, stages. A tile of 128 x 128 asks the L2 cache for a byte per 64 operations,
# one of 64 x 64 for two, which is more than the cache gives where the convolution has many inputs. Small tiles are for
# small batches, whose grid would not fill the chip.
TILES = (
    (128, 128, 32, 8, 3),
    (128, 64, 32, 4, 3),
    (128, 128, 32, 4, 3),
    (128, 256, 32, 8, 2),
    (64, 128, 64, 4, 2),
    (64, 64, 64, 4, 3),
    (32, 64, 64, 4, 4),
)
TILES_FLOAT32 = ((32, 64, 32, 4, 3), (32, 32, 32, 4, 3), (64, 32, 32, 4, 3))


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
    HALVES: tl.constexpr,
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
    if NHWC:
        h_row = row.to(tl.int64) * INPUTS
    else:
        h_row = (row // PIXELS).to(tl.int64) * (INPUTS * PIXELS) + row % PIXELS
    stride: tl.constexpr = 1 if NHWC else PIXELS

    y = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, INPUTS, BLOCK_INPUTS):
        inputs = start + tl.arange(0, BLOCK_INPUTS)
        a_inside = row_inside[:, None]
        b_inside = channel_inside[None, :]
        if INPUTS % BLOCK_INPUTS:
            a_inside &= (inputs < INPUTS)[None, :]
            b_inside &= (inputs < INPUTS)[:, None]
        a = tl.load(h + h_row[:, None] + inputs[None, :] * stride, mask=a_inside, other=0.0)
        b = tl.load(weight + channel[None, :] * INPUTS + inputs[:, None], mask=b_inside, other=0.0)
        y = tl.dot(a, b, y, input_precision="ieee")

    if HALVES:  # so that the residual needs half as many registers as the product
        halves = tl.reshape(y, (BLOCK_ROWS, 2, BLOCK_CHANNELS // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        half = (program % channel_blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS // 2)
        _finish(left, row, rows, half, bias, gate, residual, out, CHANNELS, PIXELS, NHWC, RELU, BLOCK_ROWS)
        half += BLOCK_CHANNELS // 2
        _finish(right, row, rows, half, bias, gate, residual, out, CHANNELS, PIXELS, NHWC, RELU, BLOCK_ROWS)
    else:
        _finish(y, row, rows, channel, bias, gate, residual, out, CHANNELS, PIXELS, NHWC, RELU, BLOCK_ROWS)


@triton.jit
def _finish(
    y,
    row,
    rows,
    channel,
    bias,
    gate,
    residual,
    out,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NHWC: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """From the product `y` [row, channel] to the result."""
    image = row // PIXELS
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    y += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if PIXELS % BLOCK_ROWS == 0:  # all rows are of one image
        of_image = gate + (tl.min(row, 0) // PIXELS) * CHANNELS
        y *= tl.load(of_image + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    else:
        y *= tl.load(gate + image[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if NHWC:
        at = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    else:
        at = (image.to(tl.int64) * (CHANNELS * PIXELS) + row % PIXELS)[:, None] + channel[None, :] * PIXELS
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as PyTorch does
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


def plans(inputs: int, channels: int, pixels: int, nhwc: bool, relu: bool, value_bytes: int) -> tuple[Plan, ...]:
    """The ways to launch `gated_conv1x1` on maps of that shape, the one without measurement first.

    Values have 2 or 4 bytes.
    """
    tiles = list(TILES if value_bytes == 2 else TILES_FLOAT32)
    if -(-channels // 64) * 64 < -(-channels // 128) * 128 and value_bytes == 2:
        tiles[:2] = tiles[1::-1]  # the wider one would be idle where there are no channels
    found: dict[str, Plan] = {}
    for rows, most, depth, warps, stages in tiles:
        block = max(16, min(most, power_of_two(channels)))
        depth = max(16, min(depth, power_of_two(inputs)))
        made = Plan(
            kernel=gated_conv1x1,
            constants={
                "INPUTS": inputs,
                "CHANNELS": channels,
                "PIXELS": pixels,
                "NHWC": nhwc,
                "RELU": relu,
                "BLOCK_ROWS": rows,
                "BLOCK_CHANNELS": block,
                "BLOCK_INPUTS": depth,
                "HALVES": rows * block // (warps * WARP) >= 64,
            },
            blocks=-(-channels // block),
            warps=warps,
            label=f"triton {rows}x{block}x{depth}, {stages} stages, {warps} warps",
            rows_per_block=rows,
            stages=stages,
        )
        found.setdefault(made.label, made)
    return tuple(found.values())
