"""How a kernel is launched: the constants that it is compiled with, and its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One kernel for one shape of map, any batch N.

    The grid is (blocks, N); where `rows_per_block` is given, it is (blocks * ceil(N PIXELS / rows_per_block),), and
    the kernel takes N PIXELS as its scalar. `warps` of 32 threads run a program, `stages` are those of its pipeline.
    """

    kernel: Any  # of Triton, which has no types
    constants: Mapping[str, int]
    blocks: int
    warps: int
    rows_per_block: int | None = None
    stages: int = 2

    def rows(self, batch: int) -> int:
        """Pixels of all images of a batch."""
        return batch * self.constants["PIXELS"]

    def grid(self, batch: int) -> tuple[int, int]:
        """Programs to launch for a batch of N images."""
        if self.rows_per_block is None:
            return self.blocks, batch
        return self.blocks * -(-self.rows(batch) // self.rows_per_block), 1


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`, which is positive."""
    return 1 << (number - 1).bit_length()
