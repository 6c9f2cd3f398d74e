"""The kernel of FusedECA: pooling, convolution over channels, sigmoid, scale, residual and ReLU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.channel_convolution import convolve, halo_values, inside_map, offsets, sums_by_phase, taps_of
from eca_plugin.plan import Plan, power_of_two

LARGEST_TAPS = 9
VECTOR_BYTES = 16  # the widest load of a thread
WARP = 32
MOST_KEPT = 16  # tiles of one vector a thread: 64 of its registers
MOST_AT_ONCE = 15  # those kept and those of the residual, where 128 registers are to do
# Channels of a block and warps of a program, the fewest pixels first: (below so many pixels, channels, warps). A block
# reads at least 64 bytes a pixel where its map still fits into registers; the larger the map, the more warps hold it.
NHWC_BLOCKS = ((64, 128, 4), (256, 64, 8), (1024, 32, 8), (1 << 62, 16, 16))
NCHW_BLOCKS = ((64, 8, 1), (256, 8, 2), (1024, 8, 4), (1 << 62, 8, 16))

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def fused_eca(
    x,
    weight,
    residual,  # None where nothing is added
    out,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    TAPS: tl.constexpr,
    NHWC: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    KEPT: tl.constexpr,
    HALO: tl.constexpr,
    HALO_PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """One program: BLOCK_CHANNELS channels of one image; grid (ceil(CHANNELS / BLOCK_CHANNELS), N).

    It sums its own channels and HALO neighbours on each side, HALO >= TAPS // 2. The first KEPT tiles of BLOCK_PIXELS
    pixels stay in registers between the sum and the scaling. The others are read again, the latest first: they are the
    likeliest to be in the L2 cache still. What does not depend on the gate is loaded before the first barrier, which no
    load is moved across: the neighbours, the weights, the first AHEAD tiles of the residual. The sums are split in
    1 << STEPS phases, see `channel_convolution`.
    """
    image = tl.program_id(1).to(tl.int64) * (CHANNELS * PIXELS)
    first = tl.program_id(0) * BLOCK_CHANNELS
    own = first + tl.arange(0, BLOCK_CHANNELS)
    pixels = tl.arange(0, BLOCK_PIXELS)
    stride: tl.constexpr = CHANNELS if NHWC else 1
    step: tl.constexpr = BLOCK_PIXELS * stride
    whole_block: tl.constexpr = CHANNELS % BLOCK_CHANNELS == 0
    tiles: tl.constexpr = (PIXELS + BLOCK_PIXELS - 1) // BLOCK_PIXELS
    # Constants are added to these alone, so that the tiles share their registers.
    at = image + offsets(own, pixels, CHANNELS, PIXELS, NHWC)

    taps = taps_of(weight, TAPS)
    if TAPS > 1:
        halo = halo_values(x + image, first, CHANNELS, PIXELS, NHWC, BLOCK_CHANNELS, HALO, HALO_PIXELS)
    sums = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    kept = ()
    for index in tl.static_range(KEPT):
        inside = inside_map(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        tile = _load(x + at + index * step, inside, whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS)
        kept = kept + (_packed(tile),)  # Triton's language has no unpacking
        sums += tile.to(tl.float32)
    for index in range(KEPT, tiles):
        inside = inside_map(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        sums += tl.load(x + at + index * step, mask=inside, other=0.0).to(tl.float32)
    added = ()
    for index in tl.static_range(AHEAD):
        if residual is not None:
            inside = inside_map(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
            tile = _load(residual + at + index * step, inside, whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS)
            added = added + (tile,)
    own_sums = sums_by_phase(sums, BLOCK_CHANNELS, BLOCK_PIXELS, STEPS)
    if TAPS > 1:
        mixed = convolve(own_sums, tl.sum(halo, 1), taps, TAPS, BLOCK_CHANNELS, HALO, STEPS)
    else:
        mixed = convolve(own_sums, None, taps, TAPS, BLOCK_CHANNELS, HALO, STEPS)
    gate = tl.sigmoid(mixed * (1.0 / PIXELS))

    for back in range(0, tiles - KEPT):
        latest = tiles - 1 - back
        inside = inside_map(own, pixels + latest * BLOCK_PIXELS, CHANNELS, PIXELS)
        again = tl.load(x + at + latest * step, mask=inside, other=0.0, eviction_policy="evict_first")
        y = again.to(tl.float32) * gate[:, None]
        if residual is not None:
            y += tl.load(residual + at + latest * step, mask=inside, other=0.0).to(tl.float32)
        _finish(y, out + at + latest * step, inside, False, RELU)
    for index in tl.static_range(KEPT):
        inside = inside_map(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        y = kept[index].to(tl.float32) * gate[:, None]
        if residual is not None:
            if index < AHEAD:
                y += added[index].to(tl.float32)
            else:
                whole_tile = whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS
                y += _load(residual + at + index * step, inside, whole_tile).to(tl.float32)
        _finish(y, out + at + index * step, inside, whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS, RELU)


@triton.jit
def _packed(tile):
    """`tile` itself, as a value that the compiler does not know.

    Else it would keep the float32 values that were summed, in twice the registers, and not convert again. An
    interpreter has no registers, and no assembler.
    """
    if COMPILED and tile.dtype.primitive_bitwidth == 16 and tile.numel > 1:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], tile.dtype, is_pure=True, pack=2)
    else:
        return tile


@triton.jit
def _load(pointers, inside, WHOLE: tl.constexpr):
    """Values at `pointers`; where WHOLE all exist, and no mask is kept in registers."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _finish(y, pointers, inside, WHOLE: tl.constexpr, RELU: tl.constexpr):
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as PyTorch does
    if WHOLE:
        tl.store(pointers, y.to(pointers.dtype.element_ty))
    else:
        tl.store(pointers, y.to(pointers.dtype.element_ty), mask=inside)


def plans(channels: int, pixels: int, taps: int, nhwc: bool, relu: bool, value_bytes: int) -> tuple[Plan, ...]:
    """The ways to launch `fused_eca` on maps of that shape, the one without measurement first.

    Raises ValueError where `taps` is even or above LARGEST_TAPS.
    """
    if taps % 2 == 0 or not 1 <= taps <= LARGEST_TAPS:
        raise ValueError(f"FusedECA takes an odd number of taps from 1 to {LARGEST_TAPS}, not {taps}")
    known = NHWC_BLOCKS if nhwc else NCHW_BLOCKS
    _, most, warps = next(row for row in known if pixels < row[0])
    tried = [(most, warps), (most, 2 * warps), (2 * most, warps), (2 * most, 2 * warps), (most, max(1, warps // 2))]
    if most > 8:
        tried.append((most // 2, max(1, warps // 2)))
    found: dict[str, Plan] = {}
    for most, warps in tried:
        if warps <= 32:
            made = _plan(channels, pixels, taps, nhwc, relu, value_bytes, most, warps)
            found.setdefault(made.label, made)
    return tuple(found.values())


def _plan(
    channels: int, pixels: int, taps: int, nhwc: bool, relu: bool, value_bytes: int, most: int, warps: int
) -> Plan:
    block = min(power_of_two(channels), most)
    # One vector a thread in each tile.
    count = max(1, min(power_of_two(pixels), warps * WARP * VECTOR_BYTES // value_bytes // block))
    tiles = -(-pixels // count)
    registers = (65536 // (warps * WARP) if warps > 8 else 255) - 56  # left for what is not kept: counted by ptxas
    room, at_once = registers // 4, MOST_AT_ONCE
    if channels % block:  # loads with masks need more
        room, at_once = room * 3 // 5, at_once * 3 // 5
    kept = min(tiles, MOST_KEPT, room)
    # LARGEST_TAPS reach four channels, whose vector is as cheap as one where channels lie beside each other
    halo = 4 if nhwc else power_of_two(max(1, taps // 2))
    return Plan(
        kernel=fused_eca,
        constants={
            "CHANNELS": channels,
            "PIXELS": pixels,
            "TAPS": taps,
            "NHWC": nhwc,
            "RELU": relu,
            "BLOCK_CHANNELS": block,
            "BLOCK_PIXELS": count,
            "KEPT": kept,
            "HALO": halo,
            "STEPS": (min(block, VECTOR_BYTES // value_bytes) if nhwc else 1).bit_length() - 1,
            "AHEAD": max(0, min(kept, at_once - kept)),
            "HALO_PIXELS": min(
                power_of_two(pixels), max(1, warps * WARP * 2 * VECTOR_BYTES // value_bytes // (2 * halo))
            ),
        },
        blocks=-(-channels // block),
        warps=warps,
        label=f"triton {block}x{count}, {kept} of {tiles} kept, {warps} warps",
    )
