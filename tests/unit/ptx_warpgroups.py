"""A Hopper's own matrix instructions: four warps together multiply what lies in shared memory, while they go on.

By the PTX ISA's "Asynchronous Warpgroup Level Matrix Instructions"; where a matrix's values lie, by the canonical
layouts in CUTLASS (include/cute/arch/mma_sm90_desc.hpp).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.unit import ptx_arithmetic as arithmetic
from tests.unit.ptx_memory import WARP, WARPGROUP, Ints, SharedMemory

Array: TypeAlias = NDArray[Any]
DEPTH = 16  # inputs that one instruction takes, of 16 bits
UNIT = 16  # bytes in which descriptors count
SWIZZLED_BITS = (0, 3, 2, 1)  # by the descriptor's mode: none, rows of 128, 64, 32 bytes


def places(descriptor: int, rows: int, transposed: bool) -> Ints:
    """Where the values of a matrix lie, [rows, DEPTH], in bytes of shared memory.

    `transposed`: values of one column lie side by side, not those of one row.
    """
    start = (descriptor & 0x3FFF) * UNIT
    leading, stride = ((descriptor >> shift & 0x3FFF) * UNIT for shift in (16, 32))
    assert descriptor >> 49 & 7 == 0, "a base offset"
    bits = SWIZZLED_BITS[descriptor >> 62]
    assert bits, "our kernels' matrices are swizzled"
    width = UNIT << bits  # of a row in bytes
    row, column = np.arange(rows)[:, None], np.arange(DEPTH)[None, :]
    if transposed:
        offset = row * 2 % width + row * 2 // width * leading + column % 8 * width + column // 8 * stride
    else:
        offset = column * 2 + row % 8 * width + row // 8 * stride
    found = start + offset
    return np.asarray(found ^ (found >> 7 & (1 << bits) - 1) << 4)


@dataclass
class Products:
    """The products that may not be finished: in groups, the names of the registers that they are to be in."""

    groups: list[set[str]] = field(default_factory=lambda: [set()])
    touched: set[str] = field(default_factory=set)  # registers written since the last wgmma.fence

    @property
    def pending(self) -> set[str]:
        """Registers that nothing else may touch."""
        return set().union(*self.groups)

    def multiply(
        self, shared: SharedMemory, kinds: tuple[str, ...], names: list[str], sums: Array, descriptors: Ints
    ) -> Array:
        """What the registers `names` become, float32 [threads, len(names)], from what they are: `sums`.

        `descriptors` are of a and b, by thread: [2, threads].
        """
        assert not self.touched & set(names), "a register was written with no wgmma.fence since"
        self.groups[-1].update(names)
        columns = int(kinds[4].removeprefix("m64n").removesuffix(f"k{DEPTH}"))
        assert len(names) == columns // 2
        lane, register = np.arange(WARPGROUP)[:, None], np.arange(len(names))
        at_row = lane // WARP * 16 + lane % WARP // 4 + 8 * (register % 4 // 2)
        at_column = 8 * (register // 4) + 2 * (lane % 4) + register % 2
        out = np.zeros_like(sums)
        for group in range(len(sums) // WARPGROUP):
            threads = slice(group * WARPGROUP, (group + 1) * WARPGROUP)
            matrices = []
            for which, rows in ((0, 64), (1, columns)):
                one = descriptors[which, threads]
                assert (one == one[0]).all(), "the threads of a warpgroup mean different matrices"
                where = places(int(one[0]), rows, kinds[8 + which] == "1")
                bits = shared.multiplied(group, where.reshape(-1), 2).view("u2").reshape(where.shape)
                matrices.append(arithmetic.widened(bits, kinds[6]).astype("f8"))
            out[threads] = sums[threads] + (matrices[0] @ matrices[1].T)[at_row, at_column]
        return out

    def commit(self) -> None:
        """Makes a group of the products since the last one."""
        self.groups.append(set())

    def wait(self, groups: int) -> None:
        """Until all groups but so many of the last are finished."""
        self.groups = self.groups[max(0, len(self.groups) - 1 - groups) :]
