"""The kernel of FusedECA: pooling, convolution over channels, sigmoid, scale, residual and ReLU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from eca_plugin.plan import Plan, power_of_two

LARGEST_TAPS = 9
RESIDENT_PIXELS = 256  # a map of up to so many pixels is read once and stays in registers


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
    HALO: tl.constexpr,
):
    """One program: BLOCK_CHANNELS channels of one image; grid (ceil(CHANNELS / BLOCK_CHANNELS), N).

    It sums its own channels and HALO neighbours on each side, HALO >= TAPS // 2. Where BLOCK_PIXELS >= PIXELS the map
    stays in registers between the sum and the scaling, else it is read again, from the L2 cache where that holds it.
    """
    image = tl.program_id(1).to(tl.int64) * (CHANNELS * PIXELS)
    first = tl.program_id(0) * BLOCK_CHANNELS
    own = first + tl.arange(0, BLOCK_CHANNELS)
    # Left neighbours, then right ones. NHWC loads whole vectors of them, though the taps reach only the nearest.
    side = tl.arange(0, 2 * HALO)
    halo = tl.where(side < HALO, first - HALO + side, first + BLOCK_CHANNELS - HALO + side)

    sums = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    halo_sums = tl.zeros((2 * HALO, BLOCK_PIXELS), tl.float32)
    if BLOCK_PIXELS >= PIXELS:
        at, inside = _tile(own, 0, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
        kept = tl.load(x + image + at, mask=inside, other=0.0)
        sums += kept.to(tl.float32)
        if TAPS > 1:
            halo_at, halo_inside = _tile(halo, 0, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
            halo_sums += tl.load(x + image + halo_at, mask=halo_inside, other=0.0).to(tl.float32)
    else:
        for start in range(0, PIXELS, BLOCK_PIXELS):
            at, inside = _tile(own, start, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
            sums += tl.load(x + image + at, mask=inside, other=0.0).to(tl.float32)
            if TAPS > 1:
                halo_at, halo_inside = _tile(halo, start, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
                halo_sums += tl.load(x + image + halo_at, mask=halo_inside, other=0.0).to(tl.float32)

    mixed = _convolve(tl.sum(sums, 1), own, own, weight, TAPS, CHANNELS)
    if TAPS > 1:
        mixed += _convolve(tl.sum(halo_sums, 1), halo, own, weight, TAPS, CHANNELS)
    gate = tl.sigmoid(mixed / PIXELS)

    if BLOCK_PIXELS >= PIXELS:
        at, inside = _tile(own, 0, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
        _finish(kept, gate, residual, out, image, at, inside, RELU)
    else:
        for start in range(0, PIXELS, BLOCK_PIXELS):
            at, inside = _tile(own, start, CHANNELS, PIXELS, NHWC, BLOCK_PIXELS)
            again = tl.load(x + image + at, mask=inside, other=0.0)
            _finish(again, gate, residual, out, image, at, inside, RELU)


@triton.jit
def _tile(channels, start, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, NHWC: tl.constexpr, COUNT: tl.constexpr):
    """Offsets within an image, and which exist: [channels, COUNT pixels from `start`]."""
    pixels = start + tl.arange(0, COUNT)
    inside = ((channels >= 0) & (channels < CHANNELS))[:, None] & (pixels < PIXELS)[None, :]
    if NHWC:
        return channels[:, None] + pixels[None, :] * CHANNELS, inside
    else:
        return channels[:, None] * PIXELS + pixels[None, :], inside


@triton.jit
def _convolve(values, sources, targets, weight, TAPS: tl.constexpr, CHANNELS: tl.constexpr):
    """What channels `sources` of float `values` give to the convolution's results at channels `targets`."""
    tap = sources[None, :] - targets[:, None] + TAPS // 2
    used = (tap >= 0) & (tap < TAPS) & (sources < CHANNELS)[None, :]
    taps = tl.load(weight + tap, mask=used, other=0.0).to(tl.float32)
    # not by a product with zero: what is outside may be infinite
    return tl.sum(tl.where(used, taps * values[None, :], 0.0), 1)


@triton.jit
def _finish(tile, gate, residual, out, image, at, inside, RELU: tl.constexpr):
    y = tile.to(tl.float32) * gate[:, None]
    if residual is not None:
        y += tl.load(residual + image + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # keeps NaN, as PyTorch does
    tl.store(out + image + at, y.to(out.dtype.element_ty), mask=inside)


def plan(channels: int, pixels: int, taps: int, nhwc: bool, relu: bool) -> Plan:
    """How `fused_eca` is launched on maps of that shape; ValueError where `taps` is even or above LARGEST_TAPS."""
    if taps % 2 == 0 or not 1 <= taps <= LARGEST_TAPS:
        raise ValueError(f"FusedECA takes an odd number of taps from 1 to {LARGEST_TAPS}, not {taps}")
    block = min(power_of_two(channels), 32 if nhwc else 8)
    return Plan(
        kernel=fused_eca,
        constants={
            "CHANNELS": channels,
            "PIXELS": pixels,
            "TAPS": taps,
            "NHWC": nhwc,
            "RELU": relu,
            "BLOCK_CHANNELS": block,
            "BLOCK_PIXELS": power_of_two(pixels) if pixels <= RESIDENT_PIXELS else (64 if nhwc else 512),
            # whole vectors of channels are as cheap as single ones where channels lie beside each other
            "HALO": 8 if nhwc else power_of_two(max(1, taps // 2)),
        },
        blocks=-(-channels // block),
        warps=4,
    )
