"""The 1-D convolution over a block's channels, from its map's values to their mixed sums; parts of `fused_eca`.

A thread that loads 16 bytes of an NHWC map holds as many consecutive channels as these are. To take a neighbour with a
gather would ask all its registers of another lane, and to add up what warps hold would have 16 lanes write to one bank
of shared memory. So a block's channels are split by phase, the place in their vector: 1 << STEPS tensors, of which a
thread holds one value each. All neighbours but those at a vector's ends are then in the thread's own registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offsets(channels, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, NHWC: tl.constexpr):
    """Offsets within an image: [channels, pixels]."""
    if NHWC:
        return channels[:, None] + pixels[None, :] * CHANNELS
    else:
        return channels[:, None] * PIXELS + pixels[None, :]


@triton.jit
def inside_map(channels, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Which of them exist: [channels, pixels]."""
    return ((channels >= 0) & (channels < CHANNELS))[:, None] & (pixels < PIXELS)[None, :]


@triton.jit
def taps_of(weight, TAPS: tl.constexpr):
    """The weights, as float32."""
    taps = ()
    for tap in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + tap).to(tl.float32),)
    return taps


@triton.jit
def halo_values(
    image,
    first,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NHWC: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    HALO: tl.constexpr,
    HALO_PIXELS: tl.constexpr,
):
    """Floats that add up to the sums of the HALO channels before those of the block, then of those behind it:
    [2 HALO, HALO_PIXELS].
    """
    # NHWC loads a vector on each side, though the taps may reach only the nearest of its channels.
    side = tl.arange(0, 2 * HALO)
    halo = tl.where(side < HALO, first - HALO + side, first + BLOCK_CHANNELS - HALO + side)
    pixels = tl.arange(0, HALO_PIXELS)
    stride: tl.constexpr = CHANNELS if NHWC else 1
    at = image + offsets(halo, pixels, CHANNELS, PIXELS, NHWC)
    sums = tl.zeros((2 * HALO, HALO_PIXELS), tl.float32)
    for start in tl.range(0, PIXELS, HALO_PIXELS, loop_unroll_factor=4):
        inside = inside_map(halo, pixels + start, CHANNELS, PIXELS)
        sums += tl.load(at + start * stride, mask=inside, other=0.0).to(tl.float32)
    return sums


@triton.jit
def sums_by_phase(values, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEPS: tl.constexpr):
    """The sums over `values` [CHANNELS, PIXELS], by phase: element i of the p-th is of channel (i << STEPS) + p."""
    parts = (values,)
    for step in tl.static_range(STEPS):
        even = ()
        odd = ()
        for index in tl.static_range(1 << step):
            pairs = tl.reshape(parts[index], (CHANNELS >> (step + 1), 2, PIXELS))
            first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
            even = even + (first,)
            odd = odd + (second,)
        parts = even + odd
    # All phases in one go: each that is summed by itself has barriers of its own.
    if STEPS == 3:
        return tl.reduce(parts, 1, _add_8)
    elif STEPS == 2:
        return tl.reduce(parts, 1, _add_4)
    elif STEPS == 1:
        return tl.reduce(parts, 1, _add_2)
    else:
        return (tl.sum(values, 1),)


@triton.jit
def _add_2(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def _add_4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _add_8(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7


@triton.jit
def convolve(
    own,
    halo,
    taps,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HALO: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The convolution, [CHANNELS], of the sums `own` by phase with HALO neighbours on each side in `halo`.

    Sums of channels that do not exist are 0. With one tap `halo` is not looked at.
    """
    PHASES: tl.constexpr = 1 << STEPS
    reach: tl.constexpr = TAPS // 2
    group = tl.arange(0, CHANNELS >> STEPS)
    extended = ()  # what is `place` channels behind the first of each group
    for place in tl.static_range(-reach, PHASES + reach):
        if place < 0 or place >= PHASES:
            extended = extended + (_beside(own[place % PHASES], halo, group, place, CHANNELS, HALO, PHASES),)
        else:
            extended = extended + (own[place],)
    parts = ()
    for phase in tl.static_range(PHASES):
        mixed = taps[0] * extended[phase]
        for tap in tl.static_range(1, TAPS):
            mixed += taps[tap] * extended[phase + tap]
        parts = parts + (mixed,)
    for step in tl.static_range(STEPS):
        joined = ()
        for index in tl.static_range(PHASES >> (step + 1)):
            pair = tl.join(parts[index], parts[index + (PHASES >> (step + 1))])
            joined = joined + (tl.reshape(pair, ((CHANNELS >> STEPS) << (step + 1),)),)
        parts = joined
    return parts[0]


@triton.jit
def _beside(values, halo, group, place: tl.constexpr, CHANNELS: tl.constexpr, HALO: tl.constexpr, PHASES: tl.constexpr):
    """The sum of the channel at `place`, which is in another group: of its phase's `values`, or of the halo."""
    channel = group * PHASES + place
    outside = (channel < 0) | (channel >= CHANNELS)
    beyond = tl.where(channel < 0, channel + HALO, channel - CHANNELS + HALO)
    value = tl.gather(values, tl.where(outside, 0, group + place // PHASES), 0)
    other = tl.gather(halo, tl.where(outside, beyond, 0), 0)
    return tl.where(outside, other, value)
