"""Executes PTX on a CPU: the compiled kernels themselves, with the parameters and the grid that a launch gives them.

All threads of a program go in step, an array of registers each. Only what our kernels consist of is known: whatever
else occurs is a KeyError. By the PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.unit import ptx_arithmetic as arithmetic
from tests.unit import ptx_matrices as matrices
from tests.unit.ptx_memory import WARP, DeviceMemory, Ints, SharedMemory
from tests.unit.ptx_program import Program, vector
from tests.unit.ptx_warpgroups import Products

Array: TypeAlias = NDArray[Any]
WIDTHS = {"%p": np.dtype(bool), "%rs": np.dtype("u2"), "%rd": np.dtype("u8"), "%r": np.dtype("u4")}
SYMBOLS = {"global_smem": 0}


class Machine:
    """One program's threads, registers and shared memory."""

    def __init__(
        self, program: Program, memory: DeviceMemory, shared: SharedMemory, place: tuple[int, int], given: Sequence[int]
    ) -> None:
        self.program, self.memory, self.count = program, memory, program.threads
        self.shared = shared
        self.threads = np.arange(self.count)
        self.parameters = {name: value for (name, _), value in zip(program.parameters, given, strict=True)}
        self.registers: dict[str, Array] = {
            "%tid.x": self.threads.astype("u4"),
            "%ctaid.x": np.full(self.count, place[0], "u4"),
            "%ctaid.y": np.full(self.count, place[1], "u4"),
        }
        self.products = Products()
        self.active: NDArray[np.bool_] = np.ones(self.count, bool)

    def run(self) -> None:
        """From the first instruction to the return."""
        at = 0
        with np.errstate(all="ignore"):
            while True:
                one = self.program.statements[at]
                at += 1
                self.active = np.ones(self.count, bool)
                if one.guard:
                    self.active = self.registers[one.guard[0]] == one.guard[1]
                if one.kinds[0] in {"bra", "ret"}:
                    assert self.active.all() or not self.active.any(), "threads of one program part"
                    if self.active.any():
                        if one.kinds[0] == "ret":
                            return
                        at = self.program.labels[one.operands[0]]
                elif self.active.any():
                    DOES[one.kinds[0]](self, one.kinds, one.operands)

    def get(self, operand: str, kind: str) -> Array:
        """An operand's values of a type such as f32, by thread."""
        assert operand not in self.products.pending, f"{operand} is read before its product is finished"
        return self.peek(operand, kind)

    def peek(self, operand: str, kind: str) -> Array:
        """As `get`, though a product is to be in it; NaN where it was never written, as halves are that no one uses."""
        dtype = arithmetic.DTYPES[kind]
        if operand in self.registers:
            held = self.registers[operand]
            return held if held.dtype == dtype else held.view(dtype)
        if operand.startswith("%"):
            assert kind != "pred", f"{operand} is read before it is written"
            return np.full(self.count * dtype.itemsize, 0xFF, np.uint8).view(dtype)
        return np.full(self.count, _number(operand, dtype), dtype)

    def put(self, operand: str, values: Array) -> None:
        """Writes a register of the threads for which the instruction is; `_` is none."""
        if operand == "_":
            return
        assert operand not in self.products.pending, f"{operand} is written before its product is finished"
        self.products.touched.add(operand)
        width = next(width for prefix, width in WIDTHS.items() if re.fullmatch(prefix + r"\d+", operand))
        values = np.broadcast_to(values, self.count)
        assert values.dtype.itemsize == width.itemsize, f"{operand} gets a {values.dtype}"
        if self.active.all():
            self.registers[operand] = values.copy().view(width)
        else:
            held = self.registers.setdefault(operand, np.zeros(self.count, width))
            self.registers[operand] = np.where(self.active, values.view(width), held)

    def addresses(self, operand: str) -> Ints:
        """What `[register + offset]` is, of the active threads."""
        base, _, offset = operand.strip("[]").partition("+")
        start = self.registers[base].astype(np.int64) if base.startswith("%") else np.full(self.count, SYMBOLS[base])
        found = np.asarray(start + int(offset or 0))[self.active]
        return found if base.startswith("%rd") else found & 0xFFFFFFFF


def _number(text: str, dtype: np.dtype[Any]) -> Any:
    if text in SYMBOLS:
        return SYMBOLS[text]
    if found := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", text):
        return np.array(int(found[1], 16), "u4").view(dtype)[()]
    value = int(text.rstrip("U"), 0)
    if dtype.kind == "b":
        return bool(value)
    return np.array(value & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)[()]


def launch(
    program: Program, grid: tuple[int, int], shared_bytes: int, given: Sequence[int], memory: DeviceMemory
) -> None:
    """Runs every program of the grid; `given` are the entry's parameters, addresses in `memory` and numbers."""
    for y in range(grid[1]):
        for x in range(grid[0]):
            Machine(program, memory, SharedMemory(shared_bytes), (x, y), given).run()


Kinds: TypeAlias = tuple[str, ...]
Operands: TypeAlias = tuple[str, ...]


def _load(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    if kinds[1] == "param":
        value = machine.parameters[operands[1].strip("[]")]
        machine.put(operands[0], machine.get(str(value), kinds[-1]))
        return
    targets, dtype = vector(operands[0]), arithmetic.DTYPES[kinds[-1]]
    count = len(targets) * dtype.itemsize
    where = machine.addresses(operands[1])
    if kinds[1] == "global":
        found = machine.memory.read(where, count)
    else:
        found = machine.shared.read(machine.threads[machine.active], where, count)
    values = np.zeros((machine.count, len(targets)), dtype)
    values[machine.active] = found.view(dtype)
    for target, column in zip(targets, values.T, strict=True):
        machine.put(target, np.ascontiguousarray(column))


def _store(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    sources = [machine.get(source, kinds[-1])[machine.active] for source in vector(operands[1])]
    values = np.ascontiguousarray(np.stack(sources, 1)).view(np.uint8)
    where = machine.addresses(operands[0])
    if kinds[1] == "global":
        machine.memory.write(where, values)
    else:
        machine.shared.write(machine.threads[machine.active], where, values)


def _copy(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """cp.async: bytes beyond the source's size are zero, and are not read."""
    if kinds[2] == "commit_group":
        machine.shared.commit()
    elif kinds[2] == "wait_group":
        machine.shared.wait(int(operands[0]))
    else:
        size = int(operands[2], 0)
        given = machine.get(operands[3], "u32")[machine.active] if len(operands) > 3 else np.full(1, size)
        reads = np.broadcast_to(given == size, machine.active.sum())
        assert (reads | (np.broadcast_to(given, reads.shape) == 0)).all()
        values = np.zeros((len(reads), size), np.uint8)
        if reads.any():
            values[reads] = machine.memory.read(machine.addresses(operands[1])[reads], size)
        machine.shared.copy(machine.threads[machine.active], machine.addresses(operands[0]), values)


def _exchange(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """shfl and redux: among the lanes of each warp."""
    assert machine.active.all()
    if kinds[0] == "redux":
        values = machine.get(operands[1], kinds[-1]).reshape(-1, WARP)
        machine.put(operands[0], np.repeat(getattr(values, kinds[2])(1), WARP))
        return
    lane = machine.threads % WARP
    other = machine.get(operands[2], "u32").astype(int)
    source = {"bfly": lane ^ other, "idx": other % WARP}[kinds[2]]
    machine.put(operands[0], machine.get(operands[1], "b32")[machine.threads - lane + source])


def _move(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    target, source = operands
    kind = kinds[-1]
    if target.startswith("{"):
        halves = machine.get(source, kind).view("u2" if kind == "b32" else "u4").reshape(machine.count, -1)
        for one, column in zip(vector(target), halves.T, strict=True):
            machine.put(one, np.ascontiguousarray(column))
    elif source.startswith("{"):
        parts = [machine.get(one, "b16" if kind == "b32" else "b32") for one in vector(source)]
        machine.put(target, np.ascontiguousarray(np.stack(parts, 1)).view(arithmetic.DTYPES[kind])[:, 0])
    else:
        machine.put(target, machine.get(source, kind))
        if source.startswith("%"):
            machine.products.touched.discard(target)  # the assembler orders its compiler's copies


def _barrier(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    assert machine.active.all()
    machine.shared.barrier(of_warps=kinds[1] == "warp")


def _calculate(function: Callable[..., Array], machine: Machine, kinds: Kinds, operands: Operands) -> None:
    types = arithmetic.types_of(kinds, len(operands) - 1)
    values = [machine.get(one, kind) for one, kind in zip(operands[1:], types, strict=True)]
    machine.put(operands[0], function(kinds, *values))


DOES: dict[str, Callable[[Machine, Kinds, Operands], None]] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "ldmatrix": matrices.load_matrices,
    "mma": matrices.multiply_matrices,
    "stmatrix": matrices.store_matrices,
    "wgmma": matrices.multiply_by_warpgroups,
    "fence": lambda machine, *_: machine.shared.fence(),
    "shfl": _exchange,
    "redux": _exchange,
    "mov": _move,
    "bar": _barrier,
    "createpolicy": lambda machine, _, operands: machine.put(operands[0], np.zeros(machine.count, "u8")),
} | {name: partial(_calculate, function) for name, function in arithmetic.FUNCTIONS.items()}
