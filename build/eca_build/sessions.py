"""Opens an engine on disk in this process, as Triton's backend runs it: images in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
from eca_service.cgroups import cores
from eca_service.contract import PROBABILITIES
from eca_service.triton.python_backend import runtimes
from numpy.typing import NDArray

Kind = Literal["onnxruntime", "openvino", "tensorrt", "inductor"]
Session = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_session(kind: Kind, precision: str, engine: Path, threads: int = 0) -> Session:
    """The engine as a function from uint8 [N, H, W, 3] to float32 [N, K]; `threads` 0 are as many as cores.

    Of the kinds only openvino asks for the precision: it computes a float32 model in bf16 where told to. Raises what
    the runtime raises.
    """
    threads = threads or cores()
    if kind == "onnxruntime":
        return _shared(runtimes.open_onnxruntime(str(engine), threads))
    if kind == "openvino":
        return _shared(runtimes.open_openvino(str(engine), precision, threads))
    if kind == "inductor":
        return _shared(runtimes.open_inductor(str(engine), threads))
    from eca_build import tensorrt_worker

    return tensorrt_worker.open_plan(engine)


def computes_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor where it is told to, and not in float32 after all."""
    return "BF16" in runtimes.openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _shared(engine: runtimes.Engine) -> Session:
    """All threads share the images; fewer than threads are run on all cores at once."""
    threads = len(engine.alone)
    pool, free = ThreadPoolExecutor(threads), SimpleQueue[runtimes.Run]()
    for run in engine.alone:
        free.put(run)

    def part(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        run = free.get()
        try:
            answers: NDArray[np.float32] = run((PROBABILITIES,), images)[0]
        finally:
            free.put(run)
        return answers

    def session(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) < threads:
            answers: NDArray[np.float32] = engine.together((PROBABILITIES,), images)[0]
            return answers
        step = engine.share(len(images))
        return np.concatenate(
            list(pool.map(part, [images[first : first + step] for first in range(0, len(images), step)]))
        )

    return session
