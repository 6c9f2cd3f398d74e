"""A Python-based Triton backend that runs our engines on a CPU, and PyTorch's packages on a GPU too.

It goes by two names. As `onnxruntime` it serves model.onnx where the native backend is not to be had: the same
repository runs unchanged under NVIDIA's container, whose native backend has that name. As `inductor` it serves the
packages of PyTorch's compiler, which no native backend knows. The contract beside an engine says what runs it fastest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Triton's stub ignores PYTHONPATH.
for _path in os.environ.get("ECA_SITE_PACKAGES", "").split(os.pathsep):
    if _path and _path not in sys.path:
        sys.path.append(_path)

import numpy as np
import triton_python_backend_utils as pb_utils

INPUT, OUTPUTS = "image", ("probabilities", "features", "gates")
# From the names of the outputs and the images to the outputs.
Run = Callable[[tuple[str, ...], Any], list[Any]]
AT_ONCE = 4  # images that a thread runs at once: more save nothing and leave its caches


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the engine in `<model>/<version>/`; threads come from ECA_TRITON_THREADS."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        threads = int(os.environ.get("ECA_TRITON_THREADS", "1"))
        self.run = _open(folder, json.loads(args["model_config"])["backend"], threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run over the rows of all requests that want the same outputs; whose caller has gone is left out."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, request in enumerate(requests):
            if request.is_cancelled():
                gone = pb_utils.TritonError("the caller has gone", pb_utils.TritonError.CANCELLED)
                responses[index] = pb_utils.InferenceResponse(error=gone)
                continue
            groups.setdefault(tuple(request.requested_output_names()), []).append(index)
        for names, indices in groups.items():
            rows = [pb_utils.get_input_tensor_by_name(requests[index], INPUT).as_numpy() for index in indices]
            for index, response in zip(indices, self._answer(names, rows), strict=True):
                responses[index] = response
        return responses

    def _answer(self, names: tuple[str, ...], rows: list[Any]) -> list[Any]:
        """A response for each entry of `rows`; where the merged run fails, each runs alone and fails alone."""
        try:
            outputs = self.run(names, np.concatenate(rows))
        except Exception as error:  # the runtimes' errors have no common class
            if len(rows) > 1:
                return [self._answer(names, [part])[0] for part in rows]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"the engine failed: {error}"))]
        ends = np.cumsum([len(part) for part in rows])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, part, strict=True)])
            for part in parts
        ]


def _open(folder: str, backend: str, threads: int) -> Run:
    if backend == "inductor":
        return _inductor(os.path.join(folder, "model.pt2"), threads)
    engine = os.path.join(folder, "model.onnx")
    try:
        with open(os.path.join(folder, "contract.json")) as file:
            contract = json.load(file)
    except OSError:  # Triton serves models without one too
        contract = {}
    if contract.get("runtime") == "openvino":
        if importlib.util.find_spec("openvino"):
            return _openvino(engine, contract["precision"], threads)
        pb_utils.Logger.log_warn(f"{engine} is fastest in OpenVINO, which is not installed: onnxruntime runs it")
    return _onnxruntime(engine, threads)


def _shared(together: Run, alone: Sequence[Run]) -> Run:
    """Images are run by each thread `alone`, some at a time; fewer than threads `together`, if the cores are free.

    That a thread has to wait for no other saves a tenth of the time, and more where others want the cores too.
    """
    pool = ThreadPoolExecutor(len(alone))

    def run(names: tuple[str, ...], images: Any) -> list[Any]:
        if len(images) < len(alone) and _others_running() < len(alone) / 2:
            return together(names, images)
        step = min(AT_ONCE, max(1, len(images) // len(alone)))
        parts: list[list[Any]] = [[]] * -(-len(images) // step)
        places = iter(range(len(parts)))  # its next() is atomic

        def work(thread: int) -> None:
            for place in places:
                parts[place] = alone[thread](names, images[step * place : step * (place + 1)])

        list(pool.map(work, range(min(len(parts), len(alone)))))
        return [np.concatenate(output) for output in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

    return run


def _others_running() -> int:
    """Threads of this machine that run or want to, without the calling one."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[0]) - 1


def _onnxruntime(engine: str, threads: int) -> Run:
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
    return _shared(opened(threads) if threads > 1 else alone, [alone] * threads)


def _openvino(engine: str, precision: str, threads: int) -> Run:
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # it tells Google of every import
    import openvino

    core = openvino.Core()
    model = core.read_model(engine)

    def compiled(streams: int) -> Any:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        return core.compile_model(model, "CPU", settings)

    def asked(compiled: Any) -> Run:
        request = compiled.create_infer_request()

        def run(names: tuple[str, ...], images: Any) -> list[Any]:
            request.infer({INPUT: images}, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in names]

        return run

    streams = compiled(threads)
    alone = [asked(streams) for _ in range(threads)]
    batch = asked(compiled(1)) if threads > 2 else alone[0]
    # A lone image is a third faster where the compiler knows that it is alone.
    model.reshape([1, *[axis.get_length() for axis in list(model.input(INPUT).partial_shape)[1:]]])
    lone = asked(compiled(1))
    return _shared(lambda names, images: (lone if len(images) == 1 else batch)(names, images), alone)


def _inductor(engine: str, threads: int) -> Run:
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, float32's tolerance is 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
    package = aoti_load_package(engine)
    device = package.get_metadata()["AOTI_DEVICE_KEY"]

    def run(names: tuple[str, ...], images: Any) -> list[Any]:
        with torch.inference_mode():
            # the gates are there only where the build was asked for them
            outputs = dict(zip(OUTPUTS, package(torch.from_numpy(images).to(device)), strict=False))
            return [outputs[name].cpu().numpy() for name in names]

    return run
