"""Compiles a kernel to PTX without a GPU, and proves that it is what a plugin needs.

The PTX is of ISA 8.0, which every driver since CUDA 12 takes, and unless its plan says otherwise for compute capability
8.0, which every later chip takes. Triton's own for 9.0 names sm_90a, and no other chip accepts that.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eca_plugin import cluster_eca, cuda_compiler
from eca_plugin.plan import Plan

Type = Literal["fp32", "fp16", "bf16"]
CHIPS = (80, 86, 89, 90, 100, 120)
PTX_ISA = 80
TYPE_NUMBERS = {"fp32": 0, "fp16": 1, "bf16": 2}  # TYPE of cluster_eca.cu
SHARED_BYTES = 48 << 10  # more of it would need a function attribute that no plugin can set


class KernelError(Exception):
    """A kernel that cannot be compiled, or whose PTX a plugin cannot use; the message is a sentence."""


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX: it takes `parameters` pointers and scalars, `threads` a program, `shared_bytes` of memory.

    `target` is what it is assembled for where that is one chip alone, such as sm_90a.
    """

    name: str
    ptx: str
    parameters: int
    threads: int
    shared_bytes: int
    target: str | None = None


@dataclass(frozen=True)
class Resources:
    """What one thread of an assembled kernel occupies."""

    registers: int
    spilled_bytes: int


def compile_plan(plan: Plan, dtype: Type, residual: bool) -> Compiled:
    """The kernel of `plan` for tensors of `dtype`, with or without a residual.

    Raises KernelError where it cannot be compiled or a plugin could not launch it.
    """
    constants = tuple(plan.constants.items())
    if plan.is_cuda:
        return _compile_cuda(constants, plan.warps, plan.capability, dtype, residual)
    return _compile(plan.kernel, constants, plan.warps, plan.stages, plan.capability, dtype, residual)


def compiles(plan: Plan, dtype: Type, residual: bool) -> bool:
    """Whether `compile_plan` gives a kernel: a larger tile may want more shared memory than there is for a plugin.

    What nvcc made is assembled too: a newer one may write what the PTX's version does not have.
    """
    try:
        compiled = compile_plan(plan, dtype, residual)
        if plan.is_cuda:
            assemble(compiled, plan.capability)
    except KernelError:
        return False
    return True


@lru_cache(maxsize=256)
def _compile_cuda(
    constants: tuple[tuple[str, int], ...], warps: int, capability: int, dtype: Type, residual: bool
) -> Compiled:
    defined = {**dict(constants), "TYPE": TYPE_NUMBERS[dtype], "RESIDUAL": int(residual)}
    try:
        ptx = cuda_compiler.ptx_of(cluster_eca.SOURCE, defined, capability)
    except cuda_compiler.CompilerError as error:
        raise KernelError(str(error)) from error
    ptx = re.sub(r"^\.version .*$", f".version {PTX_ISA / 10}", ptx, count=1, flags=re.MULTILINE)
    threads = re.search(r"\.maxntid (\d+)", ptx)
    if not threads or int(threads[1]) != 32 * warps:
        raise KernelError(f"{cluster_eca.SOURCE.name} was planned for {32 * warps} threads and compiled for others")
    return _named(cluster_eca.ENTRY, ptx, 3 + residual, 32 * warps, 0, None)


def _named(entry: str, ptx: str, parameters: int, threads: int, shared_bytes: int, target: str | None) -> Compiled:
    """One engine holds many variants of a kernel: each gets a name of its own."""
    name = f"{entry}_{hashlib.sha256(ptx.encode()).hexdigest()[:12]}"
    return Compiled(name, ptx.replace(entry, name), parameters, threads, shared_bytes, target)


@lru_cache(maxsize=256)
def _compile(
    kernel: triton.JITFunction[object],
    constants: tuple[tuple[str, int], ...],
    warps: int,
    stages: int,
    capability: int,
    dtype: Type,
    residual: bool,
) -> Compiled:
    values: dict[str, int | None] = dict(constants)
    if not residual:
        values["residual"] = None
    signature = {
        name: "constexpr" if name in values else "i32" if name == "rows" else f"*{dtype}" for name in kernel.arg_names
    }
    # Without this every load would be as wide as one value: TensorRT's and PyTorch's memory is aligned.
    pointers = [index for index, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    aligned = {(index,): [["tt.divisibility", 16]] for index in pointers}
    options = {"num_warps": warps, "num_stages": stages, "ptx_version": PTX_ISA}
    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # it would put this machine's paths into the engine
            done = triton.compile(
                ASTSource(kernel, signature, values, aligned), target=GPUTarget("cuda", capability, 32), options=options
            )
    except Exception as error:  # of the compiler's many kinds
        raise KernelError(f"the kernel {kernel.__name__} cannot be compiled: {_reason(error)}") from error
    if done.metadata.global_scratch_size or done.metadata.profile_scratch_size:
        raise KernelError(f"the kernel {kernel.__name__} wants scratch memory, which a plugin cannot give it")
    if done.metadata.shared > SHARED_BYTES:
        raise KernelError(
            f"the kernel {kernel.__name__} wants {done.metadata.shared} bytes of shared memory, "
            f"a plain launch has {SHARED_BYTES}"
        )
    declared = sum(kind != "constexpr" for kind in signature.values())
    ptx = without_hidden_parameters(done.asm["ptx"], done.metadata.name, declared)
    target = "sm_90a" if ".target sm_90a" in ptx else None
    return _named(done.metadata.name, ptx, declared, 32 * warps, done.metadata.shared, target)


def _reason(error: BaseException) -> str:
    """The last line of what went wrong first: the lines before it quote the source, as do the errors that follow."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def without_hidden_parameters(ptx: str, name: str, declared: int) -> str:
    """`ptx` whose entry takes its first `declared` parameters alone.

    Triton appends pointers to scratch memory, and who launches the kernel through a plugin does not pass them. Raises
    KernelError where the code reads one.
    """
    entry = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
    if not entry:
        raise KernelError(f"the PTX has no entry named {name}")
    parameters = [line for line in entry[1].split(",") if line.strip()]
    body = ptx[entry.end() :]
    for index in range(declared, len(parameters)):
        if re.search(rf"\b{name}_param_{index}\b", body):
            raise KernelError(f"the kernel {name} reads parameter {index}, which only Triton's own launcher passes")
    return ptx[: entry.start(1)] + ",".join(parameters[:declared]) + "\n" + ptx[entry.end(1) :]


def assemble(compiled: Compiled, chip: int) -> Resources:
    """Assembles the PTX for a chip, a number of CHIPS, with the assembler that comes with Triton.

    Raises KernelError with the assembler's first line where it refuses.
    """
    tool = triton.knobs.nvidia.ptxas_blackwell if chip >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory(prefix="eca-ptx-") as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.ptx)
        done = subprocess.run(
            [
                tool.path,
                "-v",
                f"--gpu-name={compiled.target or f'sm_{chip}'}",
                str(source),
                "-o",
                str(source.with_suffix(".cubin")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise KernelError(f"{compiled.name} for sm_{chip}: {done.stderr.strip().splitlines()[0]}")
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    if not registers or not spills:
        raise KernelError(f"{compiled.name} for sm_{chip}: the assembler does not say what the kernel occupies")
    return Resources(int(registers[1]), sum(map(int, spills)))


def widest_load_bytes(ptx: str) -> int:
    """The most bytes that one thread reads from device memory with one instruction."""
    plain = [
        int(count or 1) * int(bits) // 8 for count, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bu](\d+)", ptx)
    ]
    copied = [int(size, 16) for size in re.findall(r"cp\.async\.\S+ \[[^]]*\], \[[^]]*\], (0x\w+)", ptx)]
    return max(plain + copied, default=0)
