"""The kernel with thread-block clusters: its source executed on a CPU, its PTX where a compiler for it is there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_build import custom_nodes, inductor
from eca_plugin import cluster_eca, cuda_compiler, tuner, tuning
from eca_plugin.ahead_of_time import (
    TYPE_NUMBERS,
    Compiled,
    KernelError,
    Type,
    assemble,
    compile_plan,
    widest_load_bytes,
)
from eca_plugin.descriptor import VALUE_BYTES
from eca_plugin.plan import Plan

from tests.unit.kernel_cases import TOLERANCES

EMULATOR = Path(__file__).with_name("cluster_emulator.cpp")
DTYPES: dict[Type, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """One launch; `slab`, `cluster` and `rows` as in cluster_eca.cu, here for maps that tests can afford."""

    dtype: Type
    channels: int
    pixels: int
    taps: int
    slab: int
    cluster: int
    rows: int
    residual: bool
    relu: bool

    def plan(self) -> Plan:
        """Its plan."""
        value_bytes = VALUE_BYTES[self.dtype]
        return cluster_eca._plan(
            self.channels, self.pixels, self.taps, self.relu, value_bytes, self.slab, self.cluster, self.rows
        )


CASES = [
    Case("fp16", 64, 49, 5, 32, 4, 8, residual=True, relu=True),
    Case("fp16", 96, 30, 9, 64, 2, 8, residual=False, relu=True),  # the last slab is half empty
    Case("bf16", 24, 61, 3, 24, 8, 8, residual=True, relu=False),  # one slab, no neighbours; the last block has less
    Case("bf16", 160, 49, 7, 64, 1, 8, residual=True, relu=True),
    Case("fp32", 40, 35, 5, 16, 2, 5, residual=False, relu=False),
    Case("fp32", 16, 20, 1, 8, 8, 4, residual=True, relu=True),
]
# What the block waits at, in the order of the source.
BARRIERS = ("block.sync();", "block.publish();", "block.wait();", "if (CLUSTER > 1) block.arrive();")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernel for a CPU")


def emulator(source: Path, case: Case, folder: Path) -> ctypes.CDLL:
    """`source` and its emulated hardware, compiled for this CPU."""
    target = folder / "emulator.so"
    constants = {**case.plan().constants, "TYPE": TYPE_NUMBERS[case.dtype], "RESIDUAL": int(case.residual)}
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror", *defined]
    subprocess.run([*command, f'-DCLUSTER_ECA="{source}"', str(EMULATOR), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def launch(library: ctypes.CDLL, case: Case, seed: int) -> tuple[int, float]:
    """The emulator's status, and the largest difference from the operator's definition in float64, NaN counted."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[case.dtype]

    def nhwc() -> torch.Tensor:
        made = (torch.rand((2, case.channels, 1, case.pixels), generator=generator) * 2 - 1).to(dtype)
        return made.contiguous(memory_format=torch.channels_last)

    x, residual = nhwc(), nhwc() if case.residual else None
    weight = (torch.rand(case.taps, generator=generator) * 2 - 1).to(dtype)
    out = torch.full_like(x, torch.nan)
    addresses = [0 if t is None else t.data_ptr() for t in (x, weight, residual, out)]
    status = library.fused_eca(2, *(ctypes.c_void_p(address) for address in addresses), seed)
    wide = None if residual is None else residual.double()
    exact = custom_nodes.fused_eca(x.double(), weight.double(), wide, case.relu)
    return status, float((out.double() - exact).abs().nan_to_num(torch.inf).max())


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_source_computes_its_definition(tmp_path: Path, case: Case) -> None:
    library = emulator(cluster_eca.SOURCE, case, tmp_path)
    tolerance = TOLERANCES[str(DTYPES[case.dtype]).removeprefix("torch.")]
    for seed in (1, 2):
        status, difference = launch(library, case, seed)
        assert status == 0
        assert difference <= tolerance


@needs_compiler
@pytest.mark.parametrize("barrier", BARRIERS)
def test_emulator_notices_a_missing_barrier(tmp_path: Path, barrier: str) -> None:
    source = cluster_eca.SOURCE.read_text()
    body = source.index("DEVICE void run(")
    places = [match.start() for match in re.finditer(re.escape(barrier), source) if match.start() > body]
    assert places
    for place in places:
        broken = tmp_path / "broken.cu"
        broken.write_text(source[:place] + ";" + source[place + len(barrier) :])
        library = emulator(broken, CASES[0], tmp_path)
        results = [launch(library, CASES[0], seed) for seed in range(3)]
        assert any(status or difference > TOLERANCES["float16"] for status, difference in results), source[place:][:60]
        (tmp_path / "emulator.so").unlink()


SITES = [(256, 56), (512, 28), (1024, 14), (2048, 7), (16, 112), (24, 56), (160, 7)]


@pytest.mark.parametrize(("channels", "side"), SITES)
def test_every_site_has_a_launch_that_reads_it_once(channels: int, side: int) -> None:
    for value_bytes in (2, 4):
        found = cluster_eca.plans(channels, side * side, 5, True, value_bytes)
        assert found or value_bytes == 4
        for plan in found:
            known = plan.constants
            assert known["CLUSTER"] <= cluster_eca.LARGEST_CLUSTER
            assert plan.blocks % known["CLUSTER"] == 0, "or a plain launch would be refused"
            assert plan.warps <= 16
            held = known["CLUSTER"] * known["ROWS"] * cluster_eca.MOST_TILES
            assert held >= side * side
    assert cluster_eca.plans(12, 49, 3, True, 2) == (), "channels that are not whole vectors"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("channels", "side", "dtype"), [(256, 56, "fp16"), (1024, 14, "bf16"), (24, 56, "fp32")])
def test_ptx_is_what_a_plugin_needs(channels: int, side: int, dtype: Type) -> None:
    plan = cluster_eca.plans(channels, side * side, 5, True, VALUE_BYTES[dtype])[0]
    compiled = compile_plan(plan, dtype, True)
    assert compiled.parameters == 4 == compiled.ptx.count("\t.param .u64")
    assert ".version 8.0\n" in compiled.ptx
    assert ".target sm_90\n" in compiled.ptx
    cluster = plan.constants["CLUSTER"]
    assert (f".reqnctapercluster {cluster}, 1, 1" in compiled.ptx) == (cluster > 1)
    assert compiled.shared_bytes == 0, "what it has is in the PTX"
    assert widest_load_bytes(compiled.ptx) == 16
    for chip in (90, 100, 120):
        used = assemble(compiled, chip)
        assert used.spilled_bytes == 0
        assert used.registers * compiled.threads * plan.constants["MINIMUM"] <= 65536


def test_a_missing_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ctypes, "CDLL", none)
    plan = cluster_eca.plans(72, 49, 3, True, 2)[0]
    with pytest.raises(KernelError, match="needs nvcc, or NVRTC"):
        compile_plan(plan, "fp16", False)
    site = tuning.site("FusedECA", {"x": (1, 72, 7, 7), "w": (3,)}, "fp16", nhwc=True, residual=False, relu=True)
    number = next(number for number, one in enumerate(site.plans(90)) if one.is_cuda)
    _, reason = tuner._compile((site, 90, number))
    assert "needs nvcc, or NVRTC" in str(reason), "whoever compiles many is told why one is missing"


def test_a_package_is_built_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can launch none: they were compiled and timed in vain, and one that failed on the GPU ended the build."""
    site = tuning.site("FusedECA", {"x": (1, 256, 56, 56), "w": (5,)}, "fp16", nhwc=True, residual=True, relu=True)
    plans = site.plans(90)
    taken: tuner.Kernels = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(tuner, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    compiled = Compiled("kernel", "", 4, 32, 0)
    monkeypatch.setattr(tuner, "_compile", lambda wanted: (wanted[0].plans(wanted[1])[wanted[2]].label, compiled))
    monkeypatch.setattr(tuner, "sites_of", lambda program: [site])
    monkeypatch.setattr(tuner, "tune", lambda sites, batch, kernels: taken.update(kernels))
    inductor._fastest_kernels(None, 32)  # type: ignore[arg-type]
    assert {label for _, label in taken} == {plan.label for plan in plans if not plan.is_cuda}
    assert any(plan.is_cuda for plan in plans)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_source_that_does_not_compile_is_a_sentence(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("nonsense")
    with pytest.raises(cuda_compiler.CompilerError, match=r"nvcc refuses kernel.cu: .*error"):
        cuda_compiler.ptx_of(source, {}, 90)
