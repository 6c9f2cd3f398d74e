"""TensorRT plans for the GPU of this machine, made from ONNX or from an exported PyTorch program, and what they answer.

All of it happens in processes of their own (`tensorrt_worker`, `torch_tensorrt_worker`), which need TensorRT, a GPU and
PyTorch with CUDA: NVIDIA's pytorch container has all three. Fused kernels go into the plan as PTX, so that a stock
TensorRT backend of Triton's serves it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from eca_plugin import NAMESPACE
from eca_plugin.sources import kernels_sha256
from eca_service.contract import Passport

from eca_build import processes
from eca_build.errors import BuildError
from eca_build.provenance import versions

Frontend = Literal["onnx", "torch-tensorrt"]
CONTAINER = "NVIDIA's pytorch container (nvcr.io/nvidia/pytorch) has both"
WORKER = processes.module("eca_build.tensorrt_worker")
TORCH_WORKER = processes.module("eca_build.torch_tensorrt_worker")
PLUGINS = re.compile(r"^plan (\S+) (\S+) (\d+)$", re.MULTILINE)  # what a worker says: TensorRT, CUDA, custom nodes
# What the libraries say of what users can mend, and the sentence instead.
REASONS = (
    processes.NO_MEMORY,
    (
        r"No importer registered for op: (\w+)",
        "TensorRT has no layer for the model's operator {0}; use --attention-graph plain, or --target onnx",
    ),
    (
        r"(lib\w+\.so[\w.]*): cannot open",
        "TensorRT's Python module is installed without its library {0}; " + CONTAINER,
    ),
    (
        r"driver version is insufficient|error(?: code)?:? 35\b",
        "NVIDIA's driver {driver} is too old for this TensorRT; update it, or use an older container",
    ),
)


@dataclass(frozen=True)
class Gpu:
    """The GPU that is built for, its compute capability such as "9.0", and NVIDIA's driver."""

    name: str
    compute_capability: str
    driver: str

    @property
    def chip(self) -> int:
        """The compute capability as a number, 90 for 9.0."""
        return int(self.compute_capability.replace(".", ""))


def require() -> Gpu:
    """The GPU to build for. Raises BuildError where that or TensorRT is missing."""
    if importlib.util.find_spec("tensorrt") is None:
        raise BuildError(f"--target tensorrt needs TensorRT 10.15 or newer and a GPU; {CONTAINER}")
    tool = shutil.which("nvidia-smi")
    if tool:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        query = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader", "-i", first]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        row = [part.strip() for part in done.stdout.split(",")]
        if done.returncode == 0 and len(row) == 3:
            return Gpu(*row)
    raise BuildError("--target tensorrt builds for the GPU of this machine, and there is none with a working driver")


def frontends() -> tuple[Frontend, ...]:
    """Those that this machine has."""
    return ("onnx", "torch-tensorrt") if importlib.util.find_spec("torch_tensorrt") else ("onnx",)


def tools() -> dict[str, str]:
    """All that decides a plan beside the model, for the key of a build. Raises BuildError as `require`."""
    gpu = require()
    here = {"gpu": f"{gpu.name} ({gpu.compute_capability})", "driver": gpu.driver, "kernels": kernels_sha256()}
    return versions("tensorrt", "torch-tensorrt", "triton") | here


def build(onnx_file: Path, plan: Path, max_batch: int) -> Passport:
    """Writes the plan of an ONNX model for batches of 1 to `max_batch`; what it was built with and for.

    The ONNX model says which types run. Raises BuildError with a sentence where TensorRT cannot.
    """
    model = onnx.load(onnx_file)
    nodes = name_plugins(model)
    named = plan.with_suffix(".named.onnx")
    try:
        onnx.save(model, named)
        return _build([*WORKER, str(named)], plan, max_batch, nodes, "onnx")
    finally:
        named.unlink(missing_ok=True)


def build_program(program: Path, plan: Path, max_batch: int, sites: int) -> Passport:
    """As `build`, through Torch-TensorRT from an exported program with our operators at `sites` places."""
    return _build([*TORCH_WORKER, str(program)], plan, max_batch, sites, "torch-tensorrt")


def _build(command: Sequence[str], plan: Path, max_batch: int, nodes: int, frontend: Frontend) -> Passport:
    gpu = require()
    given = [str(plan), str(max_batch), str(gpu.chip), str(timing_cache(gpu))]
    printed = processes.run(
        [*command, *given],
        "TensorRT could not build the plan",
        lambda written, status: sentence(written, status, gpu, max_batch),
    )
    made = PLUGINS.search(printed)
    if not made:
        raise BuildError("TensorRT could not build the plan: it does not say what it made")
    if int(made[3]) != nodes:
        raise BuildError(f"TensorRT made {made[3]} plugins of the model's {nodes} custom nodes")
    return Passport(
        tensorrt=made[1],
        cuda=made[2],
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        kernels_sha256=kernels_sha256() if nodes else None,
        frontend=frontend,
    )


def timing_cache(gpu: Gpu) -> Path:
    """Where TensorRT's measurements are kept: of this GPU and driver, this TensorRT and these kernels alone."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eca-serve"
    tensorrt = versions("tensorrt").get("tensorrt", "")
    of = "\0".join([gpu.name, gpu.compute_capability, gpu.driver, tensorrt, kernels_sha256()])
    return home / f"tensorrt-timing-{hashlib.sha256(of.encode()).hexdigest()[:16]}.cache"


def sentence(written: str, status: int, gpu: Gpu, max_batch: int) -> str:
    """What went wrong, from what a worker wrote: what users can mend, else TensorRT's own last error."""
    for pattern, text in REASONS:
        found = re.search(pattern, written)
        if found:
            return text.format(*found.groups(), batch=max_batch, driver=gpu.driver)
    errors = [line.strip() for line in written.splitlines() if "[E]" in line]
    return errors[-1] if errors else processes.last_line(written, status)


def name_plugins(model: onnx.ModelProto) -> int:
    """Gives custom nodes with a residual the name of the plugin that has one, in place; the number of custom nodes."""
    from eca_plugin.descriptor import OPERATORS, WITH_RESIDUAL

    nodes = [node for node in model.graph.node if node.domain == NAMESPACE]
    for node in nodes:
        if len(node.input) > len(OPERATORS[node.op_type].inputs):
            node.op_type += WITH_RESIDUAL
    return len(nodes)
