"""ONNX to a TensorRT-RTX engine, in a new process: it needs no GPU, and the engine runs on all of CHIPS.

    python -m eca_build.tensorrt_rtx MODEL.onnx MODEL.engine MAX_BATCH CHIP...

is that process. The builder is NVIDIA's, from PyPI's wheels (extra `tensorrt-rtx`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from eca_plugin import NAMESPACE
from eca_plugin.sources import kernels_sha256
from eca_service.contract import INPUT, Passport

from eca_build import processes
from eca_build.errors import BuildError
from eca_build.provenance import versions
from eca_build.scratch import scratch

CHIPS = ("SM80", "SM86", "SM89", "SM120")  # those that it can name; it has none for Hopper
CURRENT = ("CURRENT",)  # the GPU of the machine that builds, whether it has a name or not


def require() -> Path:
    """The folder of the builder's libraries. Raises BuildError where it is not installed."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations or not importlib.util.find_spec("tensorrt_rtx_bindings"):
        raise BuildError("--target tensorrt-rtx needs NVIDIA's TensorRT-RTX; pip install 'eca-serve[tensorrt-rtx]'")
    return Path(next(iter(spec.submodule_search_locations)))


def tools() -> dict[str, str]:
    """All that decides an engine beside the model, for the key of a build."""
    builder = versions("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings", "triton")
    return builder | {"kernels": kernels_sha256()}


def build(onnx_file: Path, engine: Path, max_batch: int, chips: Sequence[str] = CHIPS) -> Passport:
    """Writes the engine for batches of 1 to `max_batch`, of `chips` that the builder names; what it was built with.

    The ONNX model says which types run. Its custom nodes become plugins, which the process that runs the engine
    registers too (`eca_plugin.rtx_plugins`). Raises BuildError with the builder's first error where it cannot.
    """
    command = [*processes.module("eca_build.tensorrt_rtx"), str(onnx_file), str(engine), str(max_batch), *chips]
    version, plugins = run(command, "TensorRT-RTX could not build the engine").split()
    nodes = sum(node.domain == NAMESPACE for node in onnx.load(onnx_file).graph.node)
    if int(plugins) != nodes:
        raise BuildError(f"TensorRT-RTX made {plugins} plugins of the model's {nodes} custom nodes")
    return Passport(tensorrt=version, kernels_sha256=kernels_sha256() if nodes else None)


def run(command: Sequence[str], failure: str) -> str:
    """Runs a process that loads TensorRT-RTX's libraries, to its end; what it printed.

    Raises BuildError as `require`, and, where it fails, with `failure` and the libraries' first error.
    """
    libraries = require()
    with scratch("rtx") as folder:
        # It loads itself a second time, under a name that its wheel lacks, and ends the process where that fails.
        for library in libraries.glob("*.so.*"):
            for name in (library.name, library.name.split(".so.")[0] + ".so"):
                (folder / name).symlink_to(library)
        searched = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
        return processes.run(command, failure, _first_error, {"LD_LIBRARY_PATH": searched})


def _first_error(written: str, status: int) -> str:
    errors = (line.strip() for line in written.splitlines() if "[E]" in line)  # NVIDIA's go to stdout, before ours
    return next(errors, processes.last_line(written, status))


def _build(source: str, target: str, max_batch: int, chips: Sequence[str]) -> None:
    import tensorrt_rtx_bindings as trt
    from eca_plugin import rtx_plugins

    logger = trt.Logger(trt.Logger.ERROR)
    creators = rtx_plugins.register(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(source).read_bytes()):
        sys.exit("[E] " + "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its products have ten bits, float32's tolerance is 1e-5
    config.num_compute_capabilities = len(chips)
    for index, chip in enumerate(chips):
        config.set_compute_capability(getattr(trt.ComputeCapability, chip), index)
    shape = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *shape), (max_batch, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("[E] no engine could be built")
    Path(target).write_bytes(plan)
    del creators  # alive until here, as the registry does not keep them
    print(trt.__version__, kinds.count(trt.LayerType.PLUGIN_V3))


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
