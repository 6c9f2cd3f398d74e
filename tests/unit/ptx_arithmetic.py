"""What PTX's instructions compute from their operands, one value for each thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Kinds: TypeAlias = tuple[str, ...]
DTYPES = {f"{kind}{bits}": np.dtype(f"{dtype}{bits // 8}") for kind, dtype in (("b", "u"), ("u", "u"), ("s", "i"))
          for bits in (16, 32, 64)}  # fmt: skip
DTYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "bf16": np.dtype("u2"), "pred": np.dtype(bool)}
DTYPES |= {"f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4")}
COMPARES: dict[str, np.ufunc] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def halves(words: Array, kind: str) -> Array:
    """The two 16-bit numbers of each word, the lower half first, as float64: [..., 2]."""
    pairs = np.ascontiguousarray(words)[..., None].view("u2")
    return widened(pairs, kind).astype("f8")


def types_of(kinds: Kinds, count: int) -> list[str]:
    """The types of an instruction's `count` sources."""
    name, last = kinds[0], kinds[-1]
    if name == "selp":
        return [last, last, "pred"]
    if name in {"shl", "shr"}:
        return [last, "u32"]
    if name == "bfe":
        return [last, "u32", "u32"]
    if name in {"mul", "mad"} and kinds[1] == "wide":
        return [last, last, last[0] + str(2 * int(last[1:]))][:count]
    return [last] * count


def _bits(values: Array, kind: str) -> Array:
    """float to 16 bits of f16 or bf16, rounded to the nearest, ties to even."""
    if kind == "f16":
        return values.astype("f2").view("u2")
    word = np.ascontiguousarray(values.astype("f4")).view("u4")
    rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype("u2")


def widened(bits: Array, kind: str) -> Array:
    """16 bits of f16 or bf16 as float32."""
    return bits.view("f2").astype("f4") if kind == "f16" else (bits.astype("u4") << 16).view("f4")


def _convert(kinds: Kinds, *values: Array) -> Array:
    target, source = kinds[-2:]
    if target.endswith("x2"):  # its first source is the upper half
        high, low = (_bits(value, target[:-2]).astype("u4") for value in values)
        return np.asarray(high << 16 | low)
    (value,) = values
    if target in {"f16", "bf16"}:
        return _bits(value, target)
    if source in {"f16", "bf16"}:
        return widened(value.view("u2"), source)
    return value.astype(DTYPES[target])


def _in_16_bits(function: Callable[..., Array], kinds: Kinds, *values: Array) -> Array:
    """On numbers of f16 or bf16, or on both of each word."""
    kind = kinds[-1].removesuffix("x2")
    if kind == kinds[-1]:
        return _bits(function(*(widened(value.view("u2"), kind).astype("f8") for value in values)), kind)
    done = function(*(halves(value, kind) for value in values))
    return np.ascontiguousarray(_bits(done, kind)).view("u4")[..., 0]


def _multiply(kinds: Kinds, a: Array, b: Array) -> Array:
    if "f16" in kinds[-1]:
        return _in_16_bits(np.multiply, kinds, a, b)
    if kinds[1] in {"wide", "hi"}:
        bits = 8 * a.dtype.itemsize
        twice = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
        product: Array = a.astype(twice) * b.astype(twice)
        return product if kinds[1] == "wide" else (product >> bits).astype(a.dtype)
    return a * b


def _fused(kinds: Kinds, a: Array, b: Array, c: Array) -> Array:
    if "f16" in kinds[-1]:
        return _in_16_bits(lambda x, y, z: x * y + z, kinds, a, b, c)
    return (a.astype("f8") * b + c).astype("f4")


def _shift(kinds: Kinds, a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    clamped = np.minimum(by, bits - 1).astype(a.dtype)
    if kinds[0] == "shl":
        return np.where(by >= bits, 0, a << clamped).astype(a.dtype)
    moved = a >> clamped
    return moved if a.dtype.kind == "i" else np.where(by >= bits, 0, moved).astype(a.dtype)


def _field(_: Kinds, a: Array, start: Array, length: Array) -> Array:
    """bfe: `length` bits from `start`, with their sign where the type has one."""
    assert (length > 0).all()
    assert (start + length <= 32).all()
    left = (32 - start - length).astype(a.dtype)
    return np.asarray((a << left) >> (32 - length).astype(a.dtype))


def _permute(_: Kinds, a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of the eight of a and b."""
    source = np.stack([a, b], 1).view("u1")
    chosen = np.stack([(selector >> 4 * place) & 0xF for place in range(4)], 1).astype(int)
    assert (chosen < 8).all()
    return np.ascontiguousarray(np.take_along_axis(source, chosen, 1)).view("u4")[:, 0]


def _divide(kinds: Kinds, a: Array, b: Array) -> Array:
    assert kinds[-1] == "f32"
    return np.divide(a, b)


def _compare(kinds: Kinds, a: Array, b: Array) -> Array:
    return np.asarray(COMPARES[kinds[1]](a, b))


def _select(_: Kinds, a: Array, b: Array, chosen: Array) -> Array:
    return np.where(chosen, a, b)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": _multiply,
    "mad": lambda kinds, a, b, c: _multiply(kinds, a, b) + c,
    "fma": _fused,
    "div": _divide,
    "ex2": lambda _, a: np.exp2(a.astype("f8")).astype("f4"),
    "neg": lambda _, a: -a,
    "not": lambda _, a: ~a,
    "and": lambda _, a, b: a & b,
    "or": lambda _, a, b: a | b,
    "xor": lambda _, a, b: a ^ b,
    "min": lambda _, a, b: np.minimum(a, b),
    "max": lambda _, a, b: np.maximum(a, b),
    "shl": _shift,
    "shr": _shift,
    "bfe": _field,
    "prmt": _permute,
    "cvt": _convert,
    "setp": _compare,
    "selp": _select,
}
