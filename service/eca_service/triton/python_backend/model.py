"""A Python-based Triton backend that runs our engines on a CPU, and PyTorch's packages on a GPU too.

It goes by two names. As `onnxruntime` it serves model.onnx where the native backend is not to be had: the same
repository runs unchanged under NVIDIA's container, whose native backend has that name. As `inductor` it serves the
packages of PyTorch's compiler, which no native backend knows. The contract beside an engine says what runs it fastest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Triton's stub ignores PYTHONPATH.
for _path in os.environ.get("ECA_SITE_PACKAGES", "").split(os.pathsep):
    if _path and _path not in sys.path:
        sys.path.append(_path)

import numpy as np
import triton_python_backend_utils as pb_utils

INPUT, OUTPUTS = "image", ("probabilities", "features", "gates")
# From the names of the outputs and the images to the outputs.
Run = Callable[[tuple[str, ...], Any], list[Any]]


class Engine(NamedTuple):
    """Ways to run one: on all cores, and on the thread that calls, of which each has its own; of `at_once` images."""

    together: Run
    alone: Sequence[Run]
    at_once: int


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the engine in `<model>/<version>/`; threads come from ECA_TRITON_THREADS."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        threads = int(os.environ.get("ECA_TRITON_THREADS", "1"))
        self.threads = _Threads(_open(folder, json.loads(args["model_config"])["backend"], threads))

    def execute(self, requests: list[Any]) -> None:
        """Has all requests that want the same outputs run as one batch, and comes back for more before it is done.

        Whose caller has gone is left out.
        """
        groups: dict[tuple[str, ...], list[Any]] = {}
        for request in requests:
            if request.is_cancelled():
                gone = pb_utils.TritonError("the caller has gone", pb_utils.TritonError.CANCELLED)
                _send(request.get_response_sender(), pb_utils.InferenceResponse(error=gone))
                continue
            groups.setdefault(tuple(request.requested_output_names()), []).append(request)
        for names, group in groups.items():
            rows = [pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy() for request in group]
            self.threads.run(_Batch(names, rows, [request.get_response_sender() for request in group]))

    def finalize(self) -> None:
        """Ends the threads; Triton calls it when nothing runs any more."""
        self.threads.end()


class _Batch:
    """Images of some requests, which want the same outputs, and what has become of them so far."""

    def __init__(self, names: tuple[str, ...], rows: list[Any], senders: list[Any]) -> None:
        self.names = names
        self.images = rows[0] if len(rows) == 1 else np.concatenate(rows)
        self._rows = rows
        self._senders = senders
        self._parts: dict[int, list[Any]] = {}
        self._left = len(self.images)
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def compute(self, run: Run, first: int, count: int) -> list[_Batch]:
        """Runs `count` images from `first` on, and with the last of all answers everybody.

        Where that fails for several requests, each of them is to run alone, and fail alone: those are returned.
        """
        images = self.images[first : first + count]
        try:
            outputs = run(self.names, images)
        except Exception as error:  # the runtimes' errors have no common class
            outputs, self._error = [], error
        with self._lock:
            self._parts[first] = outputs
            self._left -= len(images)
            if self._left:
                return []
        if self._error and len(self._rows) > 1:
            return [_Batch(self.names, [r], [s]) for r, s in zip(self._rows, self._senders, strict=True)]
        self._answer()
        return []

    def _answer(self) -> None:
        responses: list[Any] = []
        try:
            responses = [] if self._error else self._responses()
        except Exception as error:  # what the engine gave are not the outputs asked for
            self._error = error
        if self._error:
            failure = pb_utils.TritonError(f"the engine failed: {self._error}")
            responses = [pb_utils.InferenceResponse(error=failure) for _ in self._senders]
        for sender, response in zip(self._senders, responses, strict=True):
            try:
                _send(sender, response)
            except Exception as error:  # the thread has others to answer
                pb_utils.Logger.log_error(f"an answer could not be sent: {error}")

    def _responses(self) -> list[Any]:
        parts = [self._parts[first] for first in sorted(self._parts)]
        outputs = [np.concatenate(each) for each in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        ends = np.cumsum([len(rows) for rows in self._rows])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(self.names, part, strict=True)])
            for part in zip(*(np.split(output, ends) for output in outputs), strict=True)
        ]


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class _Threads:
    """Threads that share all images there are: none waits for another, nor for a batch to end.

    That saves a tenth of the time against one batch after the other, and more where others want the cores too.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._work: deque[tuple[_Batch, int, int]] = deque()
        self._lock = threading.Lock()
        self._some, self._none = threading.Condition(self._lock), threading.Condition(self._lock)
        self._busy, self._ended = 0, False
        self._threads = [threading.Thread(target=self._serve, args=(run,), daemon=True) for run in engine.alone]
        for thread in self._threads:
            thread.start()

    def run(self, batch: _Batch) -> None:
        """Returns when all of it has begun, so that what comes meanwhile waits in Triton, where it forms a batch.

        Fewer images than threads are run at once and on all cores, if these are free.
        """
        images, threads = len(batch.images), len(self._threads)
        if images < threads and not self._busy and _others_running() < threads / 2:
            for alone in batch.compute(self._engine.together, 0, images):
                self._put(alone)
        else:
            self._put(batch)
        with self._lock:
            self._none.wait_for(lambda: not self._work)

    def _put(self, batch: _Batch) -> None:
        images = len(batch.images)
        step = min(self._engine.at_once, max(1, images // len(self._threads)))
        with self._lock:
            self._work.extend((batch, first, step) for first in range(0, max(1, images), step))
            self._some.notify(len(self._work))

    def end(self) -> None:
        """Ends the threads once nothing is left to do."""
        with self._lock:
            self._ended = True
            self._some.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, run: Run) -> None:
        while True:
            with self._lock:
                self._some.wait_for(lambda: self._work or self._ended)
                if not self._work:
                    return
                batch, first, count = self._work.popleft()
                self._busy += 1
                if not self._work:
                    self._none.notify()
            for alone in batch.compute(run, first, count):
                self._put(alone)
            del batch  # it holds the images in Triton's memory
            with self._lock:
                self._busy -= 1


def _open(folder: str, backend: str, threads: int) -> Engine:
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


def _others_running() -> int:
    """Threads of this machine that run or want to, without the calling one."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[0]) - 1


def _onnxruntime(engine: str, threads: int) -> Engine:
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


def _openvino(engine: str, precision: str, threads: int) -> Engine:
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # it tells Google of every import
    import openvino

    core = openvino.Core()

    def compiled(streams: int, images: int) -> Any:
        """For so many images at once: where the compiler does not know how many, it is a fifth slower."""
        model = core.read_model(engine)
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

    streams = [compiled(threads, images) for images in (1, 2)]
    return Engine(asked([compiled(1, 1)]), [asked(streams) for _ in range(threads)], at_once=len(streams))


def _inductor(engine: str, threads: int) -> Engine:
    import torch
    from torch._inductor import aoti_load_package, config

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, float32's tolerance is 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
    # The contract says which instructions it needs, and who serves it looks for them: PyTorch would compile and run a
    # program for each set, for seconds, and only warn.
    config.cpp.vec_isa_ok = False
    logging.getLogger("torch.export.pt2_archive").setLevel(logging.ERROR)
    package = aoti_load_package(engine)
    device = package.get_metadata()["AOTI_DEVICE_KEY"]

    def run(names: tuple[str, ...], images: Any) -> list[Any]:
        with torch.inference_mode():
            # the gates are there only where the build was asked for them
            outputs = dict(zip(OUTPUTS, package(torch.from_numpy(images).to(device)), strict=False))
            return [outputs[name].cpu().numpy() for name in names]

    return Engine(run, [run], at_once=sys.maxsize)
