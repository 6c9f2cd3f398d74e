"""PTX's instructions on matrices, which the lanes of a warp, or of four, hold and multiply together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tests.unit import ptx_arithmetic as arithmetic
from tests.unit.ptx_memory import WARP
from tests.unit.ptx_program import vector

if TYPE_CHECKING:
    from tests.unit.ptx_machine import Machine

Kinds: TypeAlias = tuple[str, ...]
Operands: TypeAlias = tuple[str, ...]


def load_matrices(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """ldmatrix: four matrices of 8 x 8 values of 16 bits; eight lanes of each warp name the rows of one."""
    assert machine.active.all()
    rows = machine.shared.read(machine.threads, machine.addresses(operands[1]), 16).view("u2")
    matrices = rows.reshape(-1, 4, 8, 8)  # warp, matrix, row, column
    if "trans" in kinds:
        matrices = matrices.swapaxes(2, 3)
    pairs = np.ascontiguousarray(matrices).view("u4").reshape(-1, 4, WARP)  # lane l has pair l % 4 of row l // 4
    for target, matrix in zip(vector(operands[0]), pairs.swapaxes(0, 1), strict=True):
        machine.put(target, matrix.reshape(-1))


def store_matrices(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """stmatrix: the reverse of ldmatrix."""
    assert machine.active.all()
    pairs = np.stack([machine.get(one, "b32").reshape(-1, WARP) for one in vector(operands[1])], 1)
    matrices = np.ascontiguousarray(pairs).view("u2").reshape(-1, 4, 8, 8)
    if "trans" in kinds:
        matrices = matrices.swapaxes(2, 3)
    rows = np.ascontiguousarray(matrices).view(np.uint8).reshape(machine.count, 16)
    machine.shared.write(machine.threads, machine.addresses(operands[0]), rows)


def multiply_matrices(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """mma.m16n8k16: a [16, 16] times b [16, 8] plus c, spread over the lanes of each warp."""
    assert machine.active.all()
    assert kinds[3:6] == ("m16n8k16", "row", "col")
    registers = [[machine.get(one, "b32").reshape(-1, WARP) for one in vector(group)] for group in operands[1:]]
    a, b = (np.stack([arithmetic.halves(one, kinds[7]) for one in group], 2) for group in registers[:2])
    c = np.stack([one.view("f4") for one in registers[2]], 2).astype("f8")  # warp, lane, register
    group, within = np.divmod(np.arange(WARP), 4)
    row, column = np.zeros((2, WARP, 4, 2), int)
    for register in range(4):  # of a: below it are rows + 8, beside it columns + 8
        row[:, register] = (group + 8 * (register % 2))[:, None]
        column[:, register] = (2 * within + 8 * (register // 2))[:, None] + np.arange(2)
    left, right, sums = (np.zeros((len(c), *shape)) for shape in ((16, 16), (16, 8), (16, 8)))
    left[:, row, column] = a
    right[:, column[:, ::2], group[:, None, None]] = b
    rows, columns = row[:, :2].reshape(WARP, 4), column[:, :2].reshape(WARP, 4)
    sums[:, rows, columns] = c
    out = (sums + left @ right).astype("f4")[:, rows, columns]
    for index, target in enumerate(vector(operands[0])):
        machine.put(target, out[..., index].reshape(-1))


def multiply_by_warpgroups(machine: Machine, kinds: Kinds, operands: Operands) -> None:
    """wgmma: its products are in their registers at once, which may not be touched until they are waited for."""
    assert machine.active.all()
    products, shared = machine.products, machine.shared
    if kinds[1] == "fence":
        products.touched.clear()
    elif kinds[1] == "commit_group":
        products.commit()
        shared.commit_products()
    elif kinds[1] == "wait_group":
        products.wait(int(operands[0]))
        shared.wait_for_products(int(operands[0]))
    else:
        names, adds = vector(operands[0]), machine.get(operands[3], "pred")
        assert operands[4:6] == ("1", "1")
        zero = np.zeros(machine.count, "f4")
        sums = np.stack([np.where(adds, machine.peek(one, "f32"), zero) for one in names], 1)
        descriptors = np.stack([machine.registers[one] for one in operands[1:3]]).astype("u8")
        out = products.multiply(shared, (*kinds, *operands[6:8]), names, sums.astype("f8"), descriptors)
        for name, values in zip(names, out.astype("f4").T, strict=True):
            machine.registers[name] = np.ascontiguousarray(values).view("u4")
