"""The kernel of FusedECA: pooling, convolution over channels, sigmoid, scale, residual and ReLU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.plan import Plan, power_of_two

LARGEST_TAPS = 9
VECTOR_BYTES = 16  # the widest load of a thread
WARP = 32
MOST_KEPT = 16  # tiles of one vector a thread: 64 of its registers
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
):
    """One program: BLOCK_CHANNELS channels of one image; grid (ceil(CHANNELS / BLOCK_CHANNELS), N).

    It sums its own channels and HALO neighbours on each side, HALO >= TAPS // 2. The first KEPT tiles of BLOCK_PIXELS
    pixels stay in registers between the sum and the scaling. The others are read again, the latest first: they are the
    likeliest to be in the L2 cache still.
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
    at = image + _offsets(own, pixels, CHANNELS, PIXELS, NHWC)

    sums = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    kept = ()
    for index in tl.static_range(KEPT):
        inside = _inside(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        tile = _load(x + at + index * step, inside, whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS)
        kept = kept + (_packed(tile),)  # Triton's language has no unpacking
        sums += tile.to(tl.float32)
    for index in range(KEPT, tiles):
        inside = _inside(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        sums += tl.load(x + at + index * step, mask=inside, other=0.0).to(tl.float32)
    own_sums = tl.sum(sums, 1)
    if TAPS > 1:
        halo_sums = _halo_sums(x + image, first, CHANNELS, PIXELS, NHWC, BLOCK_CHANNELS, HALO, HALO_PIXELS)
        mixed = _convolve(own_sums, halo_sums, weight, TAPS, BLOCK_CHANNELS, HALO)
    else:
        mixed = own_sums * tl.load(weight).to(tl.float32)
    gate = tl.sigmoid(mixed / PIXELS)

    for back in range(0, tiles - KEPT):
        index = tiles - 1 - back
        inside = _inside(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        again = tl.load(x + at + index * step, mask=inside, other=0.0, eviction_policy="evict_first")
        _finish(again, gate, residual, out, at + index * step, inside, False, RELU)
    for index in tl.static_range(KEPT):
        inside = _inside(own, pixels + index * BLOCK_PIXELS, CHANNELS, PIXELS)
        _finish(
            kept[index],
            gate,
            residual,
            out,
            at + index * step,
            inside,
            whole_block and (index + 1) * BLOCK_PIXELS <= PIXELS,
            RELU,
        )


@triton.jit
def _offsets(channels, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, NHWC: tl.constexpr):
    """Offsets within an image: [channels, pixels]."""
    if NHWC:
        return channels[:, None] + pixels[None, :] * CHANNELS
    else:
        return channels[:, None] * PIXELS + pixels[None, :]


@triton.jit
def _inside(channels, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    return ((channels >= 0) & (channels < CHANNELS))[:, None] & (pixels < PIXELS)[None, :]


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
def _finish(tile, gate, residual, out, at, inside, WHOLE: tl.constexpr, RELU: tl.constexpr):
    y = tile.to(tl.float32) * gate[:, None]
    if residual is not None:
        y += _load(residual + at, inside, WHOLE).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # keeps NaN, as PyTorch does
    if WHOLE:
        tl.store(out + at, y.to(out.dtype.element_ty))
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _halo_sums(
    image,
    first,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NHWC: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    HALO: tl.constexpr,
    HALO_PIXELS: tl.constexpr,
):
    """Float sums over the plane of the HALO channels before those of the block, then of those behind it."""
    # NHWC loads a vector on each side, though the taps may reach only the nearest of its channels.
    side = tl.arange(0, 2 * HALO)
    halo = tl.where(side < HALO, first - HALO + side, first + BLOCK_CHANNELS - HALO + side)
    pixels = tl.arange(0, HALO_PIXELS)
    stride: tl.constexpr = CHANNELS if NHWC else 1
    at = image + _offsets(halo, pixels, CHANNELS, PIXELS, NHWC)
    sums = tl.zeros((2 * HALO, HALO_PIXELS), tl.float32)
    for start in range(0, PIXELS, HALO_PIXELS):
        inside = _inside(halo, pixels + start, CHANNELS, PIXELS)
        sums += tl.load(at + start * stride, mask=inside, other=0.0).to(tl.float32)
    return tl.sum(sums, 1)


@triton.jit
def _convolve(own, halo, weight, TAPS: tl.constexpr, COUNT: tl.constexpr, HALO: tl.constexpr):
    """The convolution of COUNT channels' float sums `own` with HALO neighbours on each side in `halo`.

    Sums of channels that do not exist are 0.
    """
    mixed = tl.zeros((COUNT,), tl.float32)
    for tap in tl.static_range(TAPS):
        source = tl.arange(0, COUNT) + (tap - TAPS // 2)
        outside = (source < 0) | (source >= COUNT)
        beside = tl.where(source < 0, source + HALO, source - COUNT + HALO)
        value = tl.gather(own, tl.where(outside, 0, source), 0)
        other = tl.gather(halo, tl.where(outside, beside, 0), 0)
        mixed += tl.load(weight + tap).to(tl.float32) * tl.where(outside, other, value)
    return mixed


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
    room = registers // 4 * 3 // 5 if channels % block else registers // 4  # loads with masks need more
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
            "HALO_PIXELS": min(
                power_of_two(pixels), max(1, warps * WARP * 2 * VECTOR_BYTES // value_bytes // (2 * halo))
            ),
        },
        blocks=-(-channels // block),
        warps=warps,
        label=f"triton {block}x{count}, {kept} of {tiles} kept, {warps} warps",
    )
