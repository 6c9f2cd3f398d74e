"""Engines on disk, opened in the runtime that runs them: for the backend beside this file, and for the build.

What is verified and measured so runs as it is served. The file is copied into Triton, which finds nothing else of ours.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

INPUT, OUTPUTS = "image", ("probabilities", "features", "gates")
LARGEST_BATCH = "ECA_LARGEST_BATCH"  # in the metadata of an inductor package: images that it takes at once
# From the names of the outputs and the images, uint8 [N, H, W, 3], to the outputs, float32 [N, ...].
Run = Callable[[tuple[str, ...], Any], list[Any]]


class Engine(NamedTuple):
    """Ways to run one: on all cores, and on the thread that calls, of which each has its own; of `at_once` images."""

    together: Run
    alone: Sequence[Run]
    at_once: int

    def share(self, images: int) -> int:
        """How many of `images` a thread takes at a time."""
        return min(self.at_once, max(1, images // len(self.alone)))


def open_onnxruntime(engine: str, threads: int) -> Engine:
    """A model.onnx on `threads` threads; raises what onnxruntime raises."""
    import onnxruntime

    def opened(threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Between two runs spinning threads would take the cores that the gateway decodes on.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
        return lambda names, images: session.run(list(names), {INPUT: images})

    alone = opened(1)
    return Engine(opened(threads) if threads > 1 else alone, [alone] * threads, at_once=2)  # more leave the caches


def openvino_core() -> Any:
    """OpenVINO's entry, `openvino.Core`; what of OpenVINO tells Google of every import is left out."""
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def open_openvino(engine: str, precision: str, threads: int) -> Engine:
    """A model.onnx on `threads` threads, computed in bf16 if `precision` is that; raises what OpenVINO raises."""
    core = openvino_core()

    def compiled(streams: int, images: int, kept: tuple[str, ...] = OUTPUTS) -> Any:
        """For so many images at once: where the compiler does not know how many, it is a fifth slower.

        What only other outputs than the `kept` ones need is not computed.
        """
        model = core.read_model(engine)
        for output in model.outputs:
            if output.get_any_name() not in kept:
                model.remove_result(output.node)
        model.reshape([images, *[axis.get_length() for axis in list(model.input(INPUT).partial_shape)[1:]]])
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        return core.compile_model(model, "CPU", settings)

    def asked(models: Sequence[Any]) -> Run:
        """By models for one image, for two and so on; of more images one part after the other."""
        requests = [model.create_infer_request() for model in models]

        def run(names: tuple[str, ...], images: Any) -> list[Any]:
            parts = []
            for first in range(0, len(images), len(requests)):
                part = images[first : first + len(requests)]
                request = requests[len(part) - 1]
                request.infer({INPUT: part}, share_inputs=True)
                parts.append([request.get_tensor(name).data.copy() for name in names])
            return [np.concatenate(output) for output in zip(*parts, strict=True)]

        return run

    lone = compiled(1, 1)
    together = asked([lone])
    # OpenVINO's binding sets itself up in its first call; two threads in it at once can wait for each other for ever.
    together(OUTPUTS[:1], np.zeros(list(lone.input(INPUT).shape), np.uint8))
    streams = [compiled(threads, images, OUTPUTS[:1]) for images in (1, 2)]

    def alone() -> Run:
        usual, whole = asked(streams), asked([lone])
        return lambda names, images: (usual if names == OUTPUTS[:1] else whole)(names, images)

    return Engine(together, [alone() for _ in range(threads)], at_once=len(streams))


def open_inductor(engine: str, threads: int) -> Engine:
    """A package of PyTorch's compiler, on `threads` threads where it is for a CPU; raises what PyTorch raises."""
    import torch
    from torch._inductor import aoti_load_package, config

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, float32's tolerance is 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
    # The contract says which instructions it needs, and who serves it looks for them: PyTorch would compile and run a
    # program for each set, for seconds, and only warn.
    config.cpp.vec_isa_ok = False
    logging.getLogger("torch.export.pt2_archive").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
    package = aoti_load_package(engine)
    known = package.get_metadata()
    device = known["AOTI_DEVICE_KEY"]

    def run(names: tuple[str, ...], images: Any) -> list[Any]:
        with torch.inference_mode():
            # the gates are there only where the build was asked for them
            outputs = dict(zip(OUTPUTS, package(torch.from_numpy(images).to(device)), strict=False))
            return [outputs[name].cpu().numpy() for name in names]

    return Engine(run, [run], at_once=int(known.get(LARGEST_BATCH, sys.maxsize)))
