"""Opens an engine on disk in this process, as Triton's backend runs it: images in, probabilities out.

On a CPU that is an image or two at a time for each thread, and all threads for a lone image.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from eca_service.contract import INPUT, PROBABILITIES
from numpy.typing import NDArray

if TYPE_CHECKING:
    from types import ModuleType

Kind = Literal["onnxruntime", "openvino", "tensorrt", "inductor"]
Session = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_session(kind: Kind, precision: str, engine: Path, threads: int = 0) -> Session:
    """The engine as a function from uint8 [N, H, W, 3] to float32 [N, K]; `threads` 0 are as many as cores.

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

    threads = threads or len(os.sched_getaffinity(0))

    def opened(threads: int) -> Session:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answers: NDArray[np.float32] = session.run([PROBABILITIES], {INPUT: images})[0]
            return answers

        return run

    alone, pool = opened(1), ThreadPoolExecutor(threads)
    together = opened(threads) if threads > 1 else alone

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) < threads:
            return together(images)
        return np.concatenate(list(pool.map(alone, _pairs(images))))

    return run


def _pairs(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[first : first + 2] for first in range(0, len(images), 2)]


def import_openvino() -> ModuleType:
    """The module, without the part of it that tells Google of every import."""
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    module: ModuleType = openvino
    return module


def _openvino(engine: Path, precision: str, threads: int) -> Session:
    """For one image or two at a time: where the compiler does not know how many, it rounds otherwise."""
    openvino = import_openvino()
    core, threads = openvino.Core(), threads or len(os.sched_getaffinity(0))

    def compiled(streams: int, images: int) -> Any:
        model = core.read_model(engine)
        model.reshape([images, *[axis.get_length() for axis in list(model.input(INPUT).partial_shape)[1:]]])
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        return core.compile_model(model, "CPU", settings)

    lone = compiled(1, 1).create_infer_request()
    pairs = openvino.AsyncInferQueue(compiled(threads, 2), threads)
    parts: dict[int, NDArray[np.float32]] = {}
    pairs.set_callback(lambda request, place: parts.update({place: request.get_tensor(PROBABILITIES).data.copy()}))

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts.clear()
        for place, pair in enumerate(_pairs(images)):
            if len(pair) == 2:
                pairs.start_async({INPUT: pair}, place, share_inputs=True)
            else:
                lone.infer({INPUT: pair}, share_inputs=True)
                parts[place] = lone.get_tensor(PROBABILITIES).data.copy()
        pairs.wait_all()
        return np.concatenate([parts[place] for place in sorted(parts)])

    return run


def _inductor(engine: Path, threads: int) -> Session:
    import torch
    from torch._inductor import aoti_load_package, config

    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, float32's tolerance is 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
    # The contract says which instructions it needs, and who serves it looks for them: PyTorch would compile and run a
    # program for each set, for seconds, and only warn.
    config.cpp.vec_isa_ok = False
    logging.getLogger("torch.export.pt2_archive").setLevel(logging.ERROR)
    package = aoti_load_package(str(engine))
    device = package.get_metadata()["AOTI_DEVICE_KEY"]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answers: NDArray[np.float32] = package(torch.from_numpy(images).to(device))[0].cpu().numpy()
        return answers

    return run
