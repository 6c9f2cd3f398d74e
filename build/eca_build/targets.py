"""What a model can be built for, what of it was asked for, and how near to the network the result must be."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from eca_build import inductor, tensorrt_plan, tensorrt_rtx
from eca_build.errors import BuildError
from eca_build.graphs import ATTENTION_GRAPHS, AttentionGraph
from eca_build.sessions import Kind
from eca_build.tensorrt_plan import Frontend

TargetName = Literal["onnx", "tensorrt", "tensorrt-rtx", "inductor"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Runtime = Literal["onnxruntime", "openvino"]
Auto = Literal["auto"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
# The runtimes of --target onnx, and the other targets; from the plainest to the least plain.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8"),
    "inductor": ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True)
class Wish:
    """What was asked for: target, types, graph, batches of 1 to `max_batch`, the gates as an output, the runtime.

    The runtime is for the target `onnx` alone; `frontend`, of `tensorrt` alone, is what makes the plan: with auto all
    that are installed try.
    """

    target: TargetName = "onnx"
    precision: Precision | Auto = "fp32"
    attention_graph: AttentionGraph | Auto = "plain"
    max_batch: int = 32
    expose_gates: bool = False
    runtime: Runtime | Auto = "onnxruntime"
    frontend: Frontend | Auto = "auto"

    @property
    def auto(self) -> bool:
        """Whether the fastest is to be found."""
        return "auto" in (self.runtime, self.precision, self.attention_graph)


@dataclass(frozen=True)
class Variant:
    """One engine that may be built; `runtime` is None but for the target `onnx`, `frontend` but for `tensorrt`."""

    target: TargetName
    runtime: Runtime | None
    precision: Precision
    attention_graph: AttentionGraph
    max_batch: int
    frontend: Frontend | None = None

    @property
    def kind(self) -> Kind | None:
        """How the engine is run where it is built; None where it cannot be."""
        return None if self.target == "tensorrt-rtx" else kind_of(self.target, self.runtime)

    def __str__(self) -> str:
        frontend = f" by {self.frontend}" if self.frontend == "torch-tensorrt" else ""
        return f"{self.runtime or self.target} {self.precision} {self.attention_graph}{frontend}"


def kind_of(target: TargetName, runtime: Runtime | None) -> Kind:
    """How an engine of `target` is run. Raises ValueError for TensorRT-RTX's, which is run nowhere here."""
    if target == "tensorrt-rtx":
        raise ValueError("nothing here runs TensorRT-RTX's engines")
    return (runtime or "onnxruntime") if target == "onnx" else target


@dataclass(frozen=True)
class Gate:
    """How near an engine's answers must be to the network's.

    `largest` is the largest difference of a probability, `agreement` the least share of images with the same best
    class. `golden` is the tolerance of the golden answers: another processor or runtime rounds otherwise, as the engine
    may from the network. Where `apart` is given, and top-1 is the same on ACCURACY.agreement of the images, a
    probability may differ by as much. Where `rounded`, it may differ by `verify.rounding` of the network, up to
    `golden`.
    """

    largest: float
    agreement: float
    golden: float
    apart: float = 0.0
    rounded: bool = False


# Below float32 the difference alone decides where it is small: classes that lie closer together than it allows may
# change places. A network that tells its classes apart clearly multiplies the rounding of its logits: correct engines
# of the demo networks differ by up to 3.3e-3 and 2.9e-2.
EXACT = {
    "fp32": Gate(1e-5, 1.0, 1e-4, rounded=True),
    "fp16": Gate(2e-3, 0.0, 2e-2, apart=1e-2),
    "bf16": Gate(2e-2, 0.0, 2e-1, apart=1e-1),
}
# Here a probability may move further, as long as the accuracy stays: see `verify.compare`.
ACCURACY = Gate(1.0, 0.95, 0.1)
RANDOM = Gate(1.0, 0.0, 0.2)  # random weights have no accuracy to lose, their classes lie close together


def gate(variant: Variant, random_weights: bool = False) -> Gate:
    """What `variant` is held to."""
    if variant.precision == "int8" or (variant.runtime == "openvino" and variant.precision == "bf16"):
        return RANDOM if random_weights else ACCURACY
    return EXACT[variant.precision]


def usual_graph(target: TargetName) -> AttentionGraph | Auto:
    """What is built where no graph is asked for: for this machine's GPU all, of which the fastest is published.

    A CPU runs fused operators as plain ones and is slower with a hoisted gate, or no faster (build/README.md).
    """
    gpu = target == "tensorrt" or (target == "inductor" and torch.cuda.is_available())
    return "auto" if gpu else "plain"


def variants(wish: Wish) -> list[Variant]:
    """All engines that would fulfil `wish`, from the plainest to the least plain; more than one where it has an auto.

    Raises BuildError where there is none, or where what builds them is not installed.
    """
    if wish.target != "onnx" and wish.runtime != "onnxruntime":
        raise BuildError(f"--runtime {wish.runtime} is for --target onnx; leave it out with --target {wish.target}")
    if wish.target != "tensorrt" and wish.frontend != "auto":
        raise BuildError(
            f"--frontend {wish.frontend} is for --target tensorrt; leave it out with --target {wish.target}"
        )
    if wish.auto and wish.target == "tensorrt-rtx":
        raise BuildError("auto measures engines, but those of --target tensorrt-rtx cannot be run here; choose one")
    if wish.expose_gates and wish.attention_graph == "fused":
        raise BuildError(
            "--attention-graph fused cannot expose its gates, which stay inside one operator; leave --expose-gates out"
        )
    runtimes = _runtimes(wish) if wish.target == "onnx" else (None,)
    precisions: tuple[Precision, ...] = get_args(Precision) if wish.precision == "auto" else (wish.precision,)
    graphs = ATTENTION_GRAPHS if wish.attention_graph == "auto" else (wish.attention_graph,)
    found = [
        Variant(wish.target, runtime, precision, graph, wish.max_batch, frontend)
        for precision in precisions
        for graph in graphs
        for runtime in runtimes
        for frontend in _frontends(wish, precision)
        if precision in PRECISIONS[runtime or wish.target] and not (wish.expose_gates and graph == "fused")
    ]
    if not found:
        asked = f"--target {wish.target}" + (f" --runtime {wish.runtime}" if wish.target == "onnx" else "")
        offered = sorted({one for runtime in runtimes for one in PRECISIONS[runtime or wish.target]})
        hint = "; --runtime openvino has bf16" if wish.precision == "bf16" and runtimes == ("onnxruntime",) else ""
        raise BuildError(f"{asked} has no --precision {wish.precision}; it has {', '.join(offered)}{hint}")
    if wish.target == "tensorrt":
        tensorrt_plan.require()
    elif wish.target == "tensorrt-rtx":
        tensorrt_rtx.require()
    elif wish.target == "inductor":
        inductor.require()
    return found


def _frontends(wish: Wish, precision: Precision) -> tuple[Frontend | None, ...]:
    """The integers are in the ONNX model, so that int8 comes from it alone."""
    if wish.target != "tensorrt":
        return (None,)
    installed = tensorrt_plan.frontends()
    if wish.frontend not in ("auto", *installed):
        raise BuildError(f"--frontend {wish.frontend} needs Torch-TensorRT, which NVIDIA's pytorch container has")
    if precision == "int8":
        if wish.frontend == "torch-tensorrt":
            raise BuildError("--frontend torch-tensorrt has no --precision int8; use --frontend onnx")
        return ("onnx",)
    return installed if wish.frontend == "auto" else (wish.frontend,)


def _runtimes(wish: Wish) -> tuple[Runtime, ...]:
    installed = importlib.util.find_spec("openvino") is not None
    if wish.runtime == "auto":
        return RUNTIMES if installed else ("onnxruntime",)
    if wish.runtime == "openvino" and not installed:
        raise BuildError("--runtime openvino needs OpenVINO; pip install 'eca-serve[openvino]'")
    return (wish.runtime,)
