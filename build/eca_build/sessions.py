"""Opens an engine on disk in this process, as Triton's backend opens it: images in, probabilities out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from eca_service.contract import INPUT, PROBABILITIES
from numpy.typing import NDArray

if TYPE_CHECKING:
    from types import ModuleType

Kind = Literal["onnxruntime", "openvino", "tensorrt", "inductor"]
Session = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_session(kind: Kind, precision: str, engine: Path, threads: int = 0) -> Session:
    """The engine as a function from uint8 [N, H, W, 3] to float32 [N, K]; `threads` 0 leaves their number to it.

    Of the kinds only openvino asks for the precision: it computes a float32 model in bf16 where told to. Raises what
    the runtime raises.
    """
    if kind == "onnxruntime":
        return _onnxruntime(engine, threads)
    if kind == "openvino":
        return _openvino(engine, precision, threads)
    if kind == "inductor":
        return _inductor(engine, threads)
    from eca_build import tensorrt_worker

    return tensorrt_worker.open_plan(engine)


def _onnxruntime(engine: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = session.run([PROBABILITIES], {INPUT: images})[0]
        return answers

    return run


def import_openvino() -> ModuleType:
    """The module, without the part of it that tells Google of every import."""
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    module: ModuleType = openvino
    return module


def _openvino(engine: Path, precision: str, threads: int) -> Session:
    core = import_openvino().Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "ENABLE_CPU_PINNING": False,
    }
    model = core.read_model(engine)
    batches = core.compile_model(model, "CPU", settings).create_infer_request()
    # A lone image is a third faster where the compiler knows that it is alone.
    model.reshape([1, *[axis.get_length() for axis in list(model.input(INPUT).partial_shape)[1:]]])
    lone = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = lone if len(images) == 1 else batches
        request.infer({INPUT: images}, share_inputs=True)
        answers: NDArray[np.float32] = request.get_tensor(PROBABILITIES).data.copy()
        return answers

    return run


def _inductor(engine: Path, threads: int) -> Session:
    import torch
    from torch._inductor import aoti_load_package

    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, float32's tolerance is 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
    package = aoti_load_package(str(engine))
    device = package.get_metadata()["AOTI_DEVICE_KEY"]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answers: NDArray[np.float32] = package(torch.from_numpy(images).to(device))[0].cpu().numpy()
        return answers

    return run
