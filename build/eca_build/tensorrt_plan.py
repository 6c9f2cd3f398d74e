"""ONNX to a TensorRT plan for the GPU of this machine, in a process of its own; and the plan opened to run.

    python -m eca_build.tensorrt_plan MODEL.onnx MODEL.plan MAX_BATCH TIMING_CACHE

is that process; `verify` runs the plan. Both need TensorRT, a GPU and PyTorch with CUDA: NVIDIA's pytorch container has
all three. Fused kernels go into the plan as PTX, so that a stock TensorRT backend of Triton's serves it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from eca_plugin.sources import kernels_sha256
from eca_service.contract import INPUT, PROBABILITIES, Passport
from numpy.typing import NDArray

from eca_build.custom_nodes import DOMAIN
from eca_build.errors import BuildError
from eca_build.sessions import Session

if TYPE_CHECKING:
    from types import ModuleType

OLDEST = (10, 15)
CONTAINER = "NVIDIA's pytorch container (nvcr.io/nvidia/pytorch) has both"


def require() -> tuple[str, str, str]:
    """Name, compute capability and driver of the GPU to build for.

    Raises BuildError where that or TensorRT is missing.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise BuildError(f"--target tensorrt needs TensorRT 10.15 or newer and a GPU; {CONTAINER}")
    tool = shutil.which("nvidia-smi")
    if tool:
        query = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader", "-i", "0"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        row = [part.strip() for part in done.stdout.split(",")]
        if done.returncode == 0 and len(row) == 3:
            return row[0], row[1], row[2]
    raise BuildError("--target tensorrt builds for the GPU of this machine, and there is none with a working driver")


def build(onnx_file: Path, plan: Path, max_batch: int) -> Passport:
    """Writes the plan for batches of 1 to `max_batch`; what it was built with and for.

    The ONNX model says which types run. Raises BuildError with TensorRT's first error where it cannot.
    """
    gpu, capability, driver = require()
    model = onnx.load(onnx_file)
    nodes = name_plugins(model)
    named = plan.with_suffix(".named.onnx")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eca-serve" / "tensorrt-timing.cache"
    try:
        onnx.save(model, named)
        command = [sys.executable, "-m", "eca_build.tensorrt_plan", str(named), str(plan)]
        done = subprocess.run([*command, str(max_batch), str(cache)], capture_output=True, text=True, check=False)
    finally:
        named.unlink(missing_ok=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "[E]" in line] or done.stderr.strip().splitlines()
        raise BuildError(
            f"TensorRT could not build the plan: {(lines or [f'exit status {done.returncode}'])[-1].strip()}"
        )
    version, cuda, plugins = done.stdout.split()[-3:]
    if int(plugins) != nodes:
        raise BuildError(f"TensorRT made {plugins} plugins of the model's {nodes} custom nodes")
    return Passport(
        tensorrt=version,
        cuda=cuda,
        gpu=gpu,
        compute_capability=capability,
        driver=driver,
        kernels_sha256=kernels_sha256() if nodes else None,
    )


def name_plugins(model: onnx.ModelProto) -> int:
    """Gives custom nodes with a residual the name of the plugin that has one, in place; the number of custom nodes."""
    from eca_plugin.descriptor import OPERATORS, WITH_RESIDUAL

    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    for node in nodes:
        if len(node.input) > len(OPERATORS[node.op_type].inputs):
            node.op_type += WITH_RESIDUAL
    return len(nodes)


def _build(source: str, target: str, max_batch: int, cache_file: Path) -> None:
    import tensorrt as trt

    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < OLDEST:
        sys.exit(f"[E] this is TensorRT {trt.__version__}; plugins with kernels inside the plan need 10.15 or newer")
    _register_plugins(trt)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(creation.STRONGLY_TYPED) | 1 << int(creation.PREFER_AOT_PYTHON_PLUGINS))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(source).read_bytes()):
        sys.exit("[E] " + "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its products have ten bits, float32's tolerance is 1e-5
    cache = config.create_timing_cache(cache_file.read_bytes() if cache_file.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    shape = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *shape), (max_batch, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("[E] no plan could be built")
    Path(target).write_bytes(plan)
    _keep(cache_file, bytes(config.get_timing_cache().serialize()))
    print(trt.__version__, _cuda_version(), kinds.count(trt.LayerType.PLUGIN_V3))


def _register_plugins(trt: ModuleType) -> None:
    import tensorrt.plugin
    from eca_plugin import quick_plugins

    quick_plugins.register(trt, tensorrt.plugin)


def _keep(file: Path, content: bytes) -> None:
    """Another build must never read half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, file)


def _cuda_version() -> str:
    import torch

    return torch.version.cuda or "unknown"


def open_plan(engine: Path) -> Session:
    """The plan on the GPU, as a function from images to probabilities; see `sessions.open_session`."""
    import tensorrt as trt
    import torch

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    plan = runtime.deserialize_cuda_engine(engine.read_bytes())
    if plan is None:
        raise RuntimeError("TensorRT cannot read the plan back")
    context = plan.create_execution_context()
    largest = plan.get_tensor_profile_shape(INPUT, 0)[2][0]
    stream = torch.cuda.Stream()

    def once(images: torch.Tensor) -> torch.Tensor:
        image = images.cuda().contiguous()
        context.set_input_shape(INPUT, tuple(image.shape))
        held = {INPUT: image}
        for index in range(plan.num_io_tensors):
            name = plan.get_tensor_name(index)
            if name != INPUT:
                held[name] = torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
        for name, tensor in held.items():
            context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the plan")
        stream.synchronize()
        return held[PROBABILITIES].cpu()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = torch.cat(
            [once(part) for part in torch.from_numpy(images).split(largest)]
        ).numpy()
        return answers

    return run


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
