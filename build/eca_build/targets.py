"""What a model can be built for: from the network to an engine on disk and its answers."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from eca_service.contract import Passport, Preprocessing
from numpy.typing import NDArray

from eca_build import lowering, tensorrt_plan, tensorrt_rtx, verify
from eca_build.errors import BuildError
from eca_build.export import Served, export
from eca_build.graphs import AttentionGraph
from eca_build.networks import Network

TargetName = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The largest difference of a probability from the network's, and the least share of images with the same best class.
# Below float32 the difference alone decides: classes that lie closer together than it allows may change places.
GATES: dict[Precision, tuple[float, float]] = {"fp32": (1e-5, 1.0), "fp16": (2e-3, 0.0), "bf16": (2e-2, 0.0)}
PRECISIONS: dict[TargetName, tuple[Precision, ...]] = {
    "onnx": ("fp32",),
    "tensorrt": ("fp32", "fp16", "bf16"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True)
class Wish:
    """What is to be built: the target, its types, its graph, batches of 1 to `max_batch`, the gates as an output."""

    target: TargetName = "onnx"
    precision: Precision = "fp32"
    attention_graph: AttentionGraph = "plain"
    max_batch: int = 32
    expose_gates: bool = False


@dataclass(frozen=True)
class Engine:
    """An engine on disk; `sites` attention sites were rewritten.

    `answers` are probabilities float32 [N, K] for the sample: the engine's own from a new process, or, where it cannot
    run on this machine, those of all that stands for it, which `verified` then says.
    """

    file: Path
    onnx_sha256: str
    sites: int
    passport: Passport | None
    answers: tuple[NDArray[np.float32], ...]
    verified: str = ""


def require(wish: Wish) -> None:
    """Raises BuildError where the target has no such precision or graph, or its builder is not installed."""
    if wish.expose_gates and wish.attention_graph == "fused":
        raise BuildError("--attention-graph fused computes its gates inside of one operator; without --expose-gates")
    if wish.precision not in PRECISIONS[wish.target]:
        offered = ", ".join(PRECISIONS[wish.target])
        raise BuildError(f"--target {wish.target} has no --precision {wish.precision}; it has {offered}")
    if wish.target == "tensorrt":
        tensorrt_plan.require()
    elif wish.target == "tensorrt-rtx":
        tensorrt_rtx.require()


def build(
    wish: Wish,
    network: Network,
    recipe: Preprocessing,
    home: Path,
    sample: NDArray[np.uint8],
    step: Callable[[str], None],
) -> Engine:
    """Builds the engine in `home` and asks it about `sample`, uint8 [N, crop, crop, 3]; `step` is told what begins.

    Raises BuildError where the network has no such graph or the engine cannot be built or run.
    """
    with tempfile.TemporaryDirectory(prefix="eca-build-") as folder:
        model = Path(folder, "model.onnx")
        step("export to ONNX")
        sites = export(network, recipe, model, wish.attention_graph, DTYPES[wish.precision], wish.expose_gates)
        if wish.target == "onnx":
            return _onnx(model, home / "model.onnx", sites, sample, step)
        step("build the engine")
        if wish.target == "tensorrt":
            plan = home / "model.plan"
            passport = tensorrt_plan.build(model, plan, wish.max_batch)
            step("verify in a new process")
            return Engine(plan, sha256(model), sites, passport, (tensorrt_plan.answers(plan, sample),))
        engine = home / "model.engine"
        passport = tensorrt_rtx.build(model, engine, wish.max_batch)
        step("verify in a new process")
        onnx_sha256 = sha256(model)
        lowering.lower_file(model, widen=wish.precision == "bf16")
        answers = [verify.answers(model, sample)]
        if wish.precision == "bf16":  # the file was widened: no CPU runtime has these types, PyTorch has
            answers.append(_in_pytorch(wish, network, recipe, sample))
        note = "the ONNX model of the engine, on a CPU: the engine itself was not run, no GPU here runs it"
        return Engine(engine, onnx_sha256, sites, passport, tuple(answers), note)


def _onnx(model: Path, engine: Path, sites: int, sample: NDArray[np.uint8], step: Callable[[str], None]) -> Engine:
    lowering.lower_file(model)
    shutil.move(model, engine)
    step("verify in a new process")
    return Engine(engine, sha256(engine), sites, None, (verify.answers(engine, sample),))


@torch.inference_mode()
def _in_pytorch(
    wish: Wish, network: Network, recipe: Preprocessing, sample: NDArray[np.uint8], batch: int = 32
) -> NDArray[np.float32]:
    served = Served(network, recipe, wish.attention_graph, DTYPES[wish.precision])
    answers: NDArray[np.float32] = torch.cat(
        [served(part)[0] for part in torch.from_numpy(sample).split(batch)]
    ).numpy()
    return answers


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
