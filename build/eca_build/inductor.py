"""A network to an AOTInductor package for the GPU of this machine, or for its CPU; compiled in a process of its own.

    python -m eca_build.inductor PROGRAM.pt2 MODEL.pt2 MAX_BATCH

is that process. It needs PyTorch and a C++ compiler; on a GPU the fused operators are our Triton kernels, inside the
package, on a CPU plain operators that the compiler fuses by itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

import torch
from eca_plugin.sources import kernels_sha256
from eca_service.contract import Passport
from eca_service.triton.python_backend.runtimes import LARGEST_BATCH
from torch import nn

from eca_build import processes
from eca_build.custom_nodes import as_operators
from eca_build.errors import BuildError
from eca_build.provenance import processor, versions
from eca_build.scratch import scratch

FAILURE = "AOTInductor could not build the package"
# What the compiler may use of a CPU without being told (-march=native), by the kernel's names.
INSTRUCTIONS = ("avx", "fma", "f16c", "bmi", "amx", "sse4")


def require() -> None:
    """Raises BuildError where there is no C++ compiler."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))[0]
    if shutil.which(compiler) is None:
        raise BuildError(
            f"--target inductor compiles C++, and there is no {compiler}; install one (Debian: apt-get install g++) "
            "or set CXX to yours"
        )


def tools() -> dict[str, str]:
    """All that decides a package beside the model and PyTorch, for the key of a build.

    Raises BuildError where there is a GPU that cannot be used.
    """
    if not torch.cuda.is_available():
        return {"instructions": " ".join(instructions())}
    try:
        major, minor = torch.cuda.get_device_capability()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise BuildError(f"--target inductor builds for this machine's GPU, which cannot be used: {reason}") from error
    gpu = f"{torch.cuda.get_device_name()} ({major}.{minor})"
    return versions("triton") | {"gpu": gpu, "kernels": kernels_sha256()}


def build(served: nn.Module, package: Path, crop: int, max_batch: int) -> Passport:
    """Writes the package for batches of 1 to `max_batch` of uint8 [N, crop, crop, 3]; what it was built with and for.

    `served` is an `export.Served`. Raises BuildError where it cannot be built: with the compiler's last line, or with
    what the GPU lacks.
    """
    cuda = torch.cuda.is_available()
    example = torch.zeros(min(2, max_batch), crop, crop, 3, dtype=torch.uint8)
    if cuda:
        try:
            served = served.to("cuda").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            example = example.cuda()
        except RuntimeError as error:
            raise BuildError(f"{FAILURE}: {_reason(str(error).splitlines()[0], 1, max_batch)}") from error
    batch = {0: torch.export.Dim("N", min=1, max=max_batch)} if max_batch > 1 else {}
    fusing = as_operators() if cuda else nullcontext()  # a CPU's compiler fuses plain operators by itself
    with fusing, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.export.export(served, (example,), dynamic_shapes={"image": batch})
        fused = any(str(node.target).startswith("eca.") for node in program.graph.nodes)
        with scratch("inductor") as folder:
            source = folder / "program.pt2"
            torch.export.save(program, source)
            processes.run(
                [*processes.module("eca_build.inductor"), str(source), str(package), str(max_batch)],
                FAILURE,
                (lambda stderr, status: _reason(stderr, status, max_batch)) if cuda else processes.last_line,
                environment={"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder)},
            )
    if not cuda:
        return Passport(torch=torch.__version__, device="cpu", instructions=instructions())
    return Passport(
        torch=torch.__version__,
        device="cuda",
        cuda=torch.version.cuda,
        gpu=torch.cuda.get_device_name(),
        compute_capability=".".join(map(str, torch.cuda.get_device_capability())),
        kernels_sha256=kernels_sha256() if fused else None,
    )


def _reason(said: str, status: int, max_batch: int) -> str:
    """What went wrong on a GPU, from what a process wrote."""
    pattern, sentence = processes.NO_MEMORY
    return sentence.format(batch=max_batch) if re.search(pattern, said) else processes.last_line(said, status)


def instructions() -> tuple[str, ...]:
    """The instruction sets of this CPU that a compiler may use, by the kernel's names."""
    return tuple(sorted(flag for flag in processor("flags").split() if flag.startswith(INSTRUCTIONS)))


def _build(source: str, target: str, max_batch: int) -> None:
    from torch._inductor import aoti_compile_and_package

    if torch.cuda.is_available():
        import_module("eca_plugin.torch_operators")  # which the program names
    _exact()
    program = torch.export.load(source)
    choices = {
        "cpp.dynamic_threads": True,  # their number is the server's to choose, not this machine's
        "cpp.vec_isa_ok": True,  # what the CPU has the compiler knows; to try each set takes a quarter of the time
        "aot_inductor.compile_wrapper_opt_level": "O0",  # it only calls kernels
        "aot_inductor.precompile_headers": False,  # for one package they cost more than they save, and 100s of MB stay
        "aot_inductor.metadata": {LARGEST_BATCH: str(max_batch)},  # of more images at once it answers the first alone
    }
    with _fastest_kernels(program, max_batch):
        aoti_compile_and_package(program, package_path=target, inductor_configs=choices)


def _fastest_kernels(program: torch.export.ExportedProgram, batch: int) -> AbstractContextManager[None]:
    """Where the program calls our kernels: within it each is launched as is fastest on this GPU, at that batch."""
    if not torch.cuda.is_available():
        return nullcontext()
    from eca_plugin import tuner, tuning

    sites = tuner.sites_of(program)
    if not sites:
        return nullcontext()
    major, minor = torch.cuda.get_device_capability()
    kernels, _ = tuner.compile_all(sites, 10 * major + minor, traced=True)
    return tuning.use(tuner.tune(sites, batch, kernels))


def _exact() -> None:
    """float32 products keep their bits: the tolerance is 1e-5."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]))
