"""How a kernel is launched: the constants that it is compiled with, and its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One kernel for one shape of map, any batch N.

    The grid is (blocks, N); where `rows_per_block` is given, it is (blocks * ceil(N PIXELS / rows_per_block),), and
    the kernel takes N PIXELS as its scalar. `warps` of 32 threads run a program, `stages` are those of its pipeline.
    `label` tells a plan from the others for the same shape. `kernel` is a function in the Triton language, or the path
    of a source in CUDA C++. Its PTX is for compute capability `capability` (80 is 8.0): for that chip and later ones,
    or, where Triton makes it for 90, for that chip alone.
    """

    kernel: Any  # Triton has no types
    constants: Mapping[str, int]
    blocks: int
    warps: int
    label: str
    rows_per_block: int | None = None
    stages: int = 2
    capability: int = 80

    @property
    def is_cuda(self) -> bool:
        """Whether it is in CUDA C++."""
        return isinstance(self.kernel, Path)

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
