"""How long shared memory takes for what a program does there.

    python -m tests.unit.ptx_counts

prints the table of build/plugin/MEASURED.md: its cycles for one program of FusedECA at ResNet-50's sites, beside those
that the multiprocessor's part of an H200's memory takes for the program's bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from eca_plugin.ahead_of_time import compile_plan
from eca_plugin.fused_eca import plans

from tests.unit.kernel_cases import Case, arguments
from tests.unit.ptx_driver import Driver
from tests.unit.ptx_machine import Machine
from tests.unit.ptx_memory import WARP, Bytes, Ints, SharedMemory
from tests.unit.ptx_program import parsed

BANKS, WORD = 32, 4
SITES = ((256, 56, 5), (512, 28, 5), (1024, 14, 5), (2048, 7, 7))  # channels, side, taps
BYTES_A_CYCLE = 4.8e12 / 132 / 1.755e9  # of memory, for each of 132 multiprocessors, by NVIDIA's data sheet


class CountingMemory(SharedMemory):
    """Counts `cycles`: in each, every bank gives or takes one word of a warp.

    Where a lane has 8 or 16 bytes, halves or quarters of a warp go by themselves.
    """

    cycles = 0

    def read(self, threads: Ints, addresses: Ints, count: int) -> Bytes:
        """Counted."""
        self._count(threads, addresses, count)
        return super().read(threads, addresses, count)

    def write(self, threads: Ints, addresses: Ints, values: Bytes) -> None:
        """Counted."""
        self._count(threads, addresses, values.shape[1])
        super().write(threads, addresses, values)

    def _count(self, threads: Ints, addresses: Ints, count: int) -> None:
        together = WARP // max(1, count // WORD)
        for one in np.unique(threads // together):
            at = addresses[threads // together == one]
            words = np.unique(at[:, None] // WORD + np.arange(max(1, count // WORD)))
            self.cycles += int(np.bincount(words % BANKS).max())


def shared_cycles(channels: int, side: int, taps: int) -> int:
    """Of one program in the middle of a float16 map in NHWC, with residual and ReLU."""
    case = Case("fused_eca", "float16", 1, channels, side, side, nhwc=True, residual=True, relu=True, taps=taps)
    inputs, residual = arguments(case)
    assert residual is not None
    plan = plans(channels, side * side, taps, nhwc=True, relu=True, value_bytes=2)[0]
    compiled, driver = compile_plan(plan, "fp16", residual=True), Driver()
    shared = CountingMemory(compiled.shared_bytes)
    given = [driver.add(tensor) for tensor in (*inputs, residual, torch.zeros_like(residual))]
    Machine(parsed(compiled.ptx), driver.memory, shared, (plan.blocks // 2, 0), given).run()
    return shared.cycles


if __name__ == "__main__":
    for channels, side, taps in SITES:
        plan = plans(channels, side * side, taps, nhwc=True, relu=True, value_bytes=2)[0]
        moved = 3 * 2 * plan.constants["BLOCK_CHANNELS"] * side * side
        cycles = shared_cycles(channels, side, taps)
        print(f"{channels} x {side} x {side}: {cycles} of shared memory, {moved / BYTES_A_CYCLE:.0f} of memory")
