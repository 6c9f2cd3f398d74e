"""TensorRT-RTX's engines: whether this GPU runs them, whether they are right, and the time of a batch.

    python -m tests.gpu.portable MODEL.engine IMAGES.npy ANSWERS.npy

is the process that runs one, as its libraries must be found before it begins. Once it has the answers it writes them,
then it prints the seconds of a batch: p50, p10, p90.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from eca_plugin.timing import Timed, spread
from numpy.typing import NDArray

from tests.gpu import sites
from tests.gpu.networks import SECONDS, Variant
from tests.gpu.report import Report, Row

if TYPE_CHECKING:
    from eca_plugin.ahead_of_time import Type

NEEDS = ("onnx", "onnxscript", "pydantic", "safetensors", "PIL")
VARIANTS = (Variant("none"), Variant("eca"), Variant("eca", "fused"))


def measure(archs: Sequence[str], batch: int, dtype: Type, folder: Path, report: Report, end: float) -> Iterator[Row]:
    """A row for each network, first built for the chips that the builder can name, then for this machine's GPU.

    An engine takes uint8 pixels, as it is served. What is missing for that, what fails before there is an engine, and
    those for which there is no time until `end`, of time.monotonic(), are noted in the report.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        report.note(f"TensorRT-RTX's engines: not installed here: {', '.join(missing)}")
        return
    from eca_build import tensorrt_rtx
    from eca_build.errors import BuildError

    try:
        tensorrt_rtx.require()
    except BuildError as error:
        report.note(f"TensorRT-RTX's engines: {error}")
        return
    longest = 0.0
    targets = {"portable": tensorrt_rtx.CHIPS, "for this GPU": tensorrt_rtx.CURRENT}
    for arch, variant in itertools.product(archs, VARIANTS):
        began = time.monotonic()
        if began + longest > end:
            report.note(f"TensorRT-RTX's engines of {arch}, {variant.label}, and all after it: no time left")
            return
        with tempfile.TemporaryDirectory(prefix="rtx-", dir=folder) as home:
            try:
                model = prepare(arch, variant, batch, dtype, Path(home))
            except Exception as error:  # one network's failure is a note, the others are measured
                told = (str(error).strip().splitlines() or [""])[0][:200]
                report.note(f"TensorRT-RTX's engines of {arch}, {variant.label}: {type(error).__name__}: {told}")
                continue
            for target, chips in targets.items():
                row: Row = {"network": arch, "variant": f"{variant.label}, {target}", "batch": batch}
                with report.trying(f"{arch}, {row['variant']}, TensorRT-RTX"):
                    row |= attempt(model, chips)
                yield row
        longest = max(longest, time.monotonic() - began)


@dataclass(frozen=True)
class Model:
    """An ONNX model, with images, uint8 [N, H, W, 3], and what the network in PyTorch answers, float32 [N, K]."""

    file: Path
    images: NDArray[np.uint8]
    expected: NDArray[np.float32]
    tolerance: float


def prepare(arch: str, variant: Variant, batch: int, dtype: Type, folder: Path) -> Model:
    """The network with random weights as a model in `folder`, with so many images. Raises what the exporter raises."""
    from eca_build import export, images, initial, targets
    from eca_build.networks import create
    from eca_service.contract import Preprocessing

    side = sites.pixels(arch)
    recipe = Preprocessing(resize=side, crop=side)
    torch.manual_seed(0)
    network = create(sites.spec(arch, variant.attention))
    initial.settle(network, side, seed=0)
    file = folder / "model.onnx"
    export.export(network, recipe, file, variant.graph, torch.float32 if dtype == "fp32" else torch.float16)
    sample = images.synthetic(side, batch)
    expected = export.reference(network, recipe, torch.from_numpy(sample)).numpy()
    return Model(file, sample, expected, targets.EXACT[dtype].largest)


def attempt(model: Model, chips: Sequence[str]) -> Row:
    """Builds the engine for `chips` and runs it here; what to say of that, the libraries' own reason where it fails."""
    from eca_build import processes, tensorrt_rtx, verify
    from eca_build.errors import BuildError

    engine, images, answers = (model.file.with_name(name) for name in ("model.engine", "images.npy", "answers.npy"))
    np.save(images, model.images)
    answers.unlink(missing_ok=True)  # another engine's
    command = [*processes.module("tests.gpu.portable"), str(engine), str(images), str(answers)]
    times: Row = {}
    reason = ""
    try:
        tensorrt_rtx.build(model.file, engine, len(model.images), chips)
        printed = tensorrt_rtx.run(command, "TensorRT-RTX could not run the engine")
        times = {key: 1e3 * float(value) for key, value in zip(("ms", "p10", "p90"), printed.split()[-3:], strict=True)}
    except BuildError as error:
        reason = str(error)[:300]
    if not answers.exists():
        return {"runs": "no", "why not": reason}
    got = np.load(answers)
    difference = float(np.abs(got - model.expected).max())
    # what always answers the same is near the network too, whose thousand classes are close together
    right = difference <= model.tolerance and verify.correlation(model.expected, got) >= verify.LEAST_CORRELATION
    found: Row = {"runs": "yes", "largest difference": difference, "right": "yes" if right else "NO"}
    return found | (times or {"why not": reason})


def _run(engine: str, source: str, target: str) -> None:
    import tensorrt_rtx_bindings as trt
    from eca_build import tensorrt_worker
    from eca_plugin import rtx_plugins
    from eca_service.contract import PROBABILITIES

    creators = rtx_plugins.register(trt)
    plan = tensorrt_worker.read(trt, Path(engine))
    config = plan.create_runtime_config()
    # else the kernels for a batch are compiled beside its first runs, which take others
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    context = plan.create_execution_context(config)
    if context is None:
        sys.exit("TensorRT-RTX made no execution context")
    held = tensorrt_worker.bind(plan, context, torch.from_numpy(np.load(source)).cuda())

    def launch() -> None:
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT-RTX did not start the engine")

    launch()
    torch.cuda.synchronize()
    np.save(target, held[PROBABILITIES].cpu().numpy())
    taken = spread(Timed([launch]).samples(SECONDS))
    print(taken.p50, taken.p10, taken.p90)
    del creators  # alive until here, as the registry does not keep them


if __name__ == "__main__":
    _run(*sys.argv[1:4])
