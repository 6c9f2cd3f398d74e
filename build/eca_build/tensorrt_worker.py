"""What calls TensorRT: from ONNX to a plan, in a process of its own, and from a plan on disk to its answers.

    python -m eca_build.tensorrt_worker MODEL.onnx MODEL.plan MAX_BATCH CHIP TIMING_CACHE

is that process. It ends its output with "plan", TensorRT's version, CUDA's and the number of plugins. Errors are lines
with [E].
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from eca_service.contract import INPUT, PROBABILITIES
from numpy.typing import NDArray

from eca_build.sessions import Session

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

OLDEST = (10, 15)


def load(chip: int) -> ModuleType:
    """TensorRT, with our plugins registered for a GPU of that compute capability; ends the process if it is too old."""
    import tensorrt as trt

    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST:
        sys.exit(f"[E] this is TensorRT {trt.__version__}; plugins with kernels inside the plan need 10.15 or newer")
    import tensorrt.plugin
    from eca_plugin import quick_plugins

    quick_plugins.register(trt, tensorrt.plugin, chip)
    module: ModuleType = trt
    return module


def _build(source: str, target: str, max_batch: int, chip: int, cache_file: Path) -> None:
    trt = load(chip)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(creation.STRONGLY_TYPED) | 1 << int(creation.PREFER_AOT_PYTHON_PLUGINS))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(source).read_bytes()):
        sys.exit("[E] " + "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its products have ten bits, float32's tolerance is 1e-5
    cache = config.create_timing_cache(cache_file.read_bytes() if cache_file.exists() else b"")
    if not cache or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # what was kept is unreadable
    shape = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *shape), (max_batch, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("no plan could be built")  # TensorRT has said why, with [E]
    Path(target).write_bytes(plan)
    keep(cache_file, bytes(config.get_timing_cache().serialize()))
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    print("plan", trt.__version__, cuda_version(), kinds.count(trt.LayerType.PLUGIN_V3))


def keep(file: Path, content: bytes) -> None:
    """Writes a file that another build must never read half of."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, file)


def cuda_version() -> str:
    """CUDA's version, of PyTorch's."""
    import torch

    return torch.version.cuda or "unknown"


def read(trt: ModuleType, engine: Path) -> Any:
    """The engine on disk as an ICudaEngine of `trt`, which is TensorRT or TensorRT-RTX.

    Raises RuntimeError where that cannot read it.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    plan = runtime.deserialize_cuda_engine(engine.read_bytes())
    if plan is None:
        raise RuntimeError("TensorRT cannot read the plan back")
    return plan


def bind(plan: Any, context: Any, image: Tensor) -> dict[str, Tensor]:
    """Has an execution context of the plan run on `image`, uint8 [N, H, W, 3] on the GPU; that and the outputs by name.

    All of them are to be kept for as long as it runs.
    """
    import torch

    context.set_input_shape(INPUT, tuple(image.shape))
    held = {INPUT: image}
    for index in range(plan.num_io_tensors):
        name = plan.get_tensor_name(index)
        if name != INPUT:
            held[name] = torch.empty(tuple(context.get_tensor_shape(name)), device=image.device)
    for name, tensor in held.items():
        context.set_tensor_address(name, tensor.data_ptr())
    return held


def open_plan(engine: Path) -> Session:
    """The plan on the GPU, as a function from images, uint8 [N, H, W, 3], to probabilities float32 [N, K].

    Raises RuntimeError where TensorRT cannot read or run it.
    """
    import tensorrt as trt
    import torch

    plan = read(trt, engine)
    context = plan.create_execution_context()
    if context is None:
        raise RuntimeError("the GPU has too little free memory to run the plan; end what else uses it")
    largest = plan.get_tensor_profile_shape(INPUT, 0)[2][0]
    stream = torch.cuda.Stream()

    def once(images: Tensor) -> Tensor:
        held = bind(plan, context, images.cuda().contiguous())
        torch.cuda.synchronize()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the plan")
        stream.synchronize()
        return held[PROBABILITIES].cpu()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [once(part) for part in torch.from_numpy(images).split(largest)]
        answers: NDArray[np.float32] = torch.cat(parts).numpy()
        return answers

    return run


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
