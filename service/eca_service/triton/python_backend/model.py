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
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

# Triton's stub ignores PYTHONPATH.
for _path in os.environ.get("ECA_SITE_PACKAGES", "").split(os.pathsep):
    if _path and _path not in sys.path:
        sys.path.append(_path)

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from eca_service.triton.python_backend import runtimes
    from eca_service.triton.python_backend.runtimes import INPUT, Engine, Run
    from eca_service.triton.python_backend.tensors import array_of, tensor_of
else:  # the files beside this one, wherever they were copied
    import runtimes
    from runtimes import INPUT, Engine, Run
    from tensors import array_of, tensor_of


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
            rows = [array_of(pb_utils.get_input_tensor_by_name(request, INPUT)) for request in group]
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
            pb_utils.InferenceResponse([tensor_of(name, rows) for name, rows in zip(self.names, part, strict=True)])
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
        if images < threads and not self._busy and _cores_are_free(threads):
            for alone in batch.compute(self._engine.together, 0, images):
                self._put(alone)
        else:
            self._put(batch)
        with self._lock:
            self._none.wait_for(lambda: not self._work)

    def _put(self, batch: _Batch) -> None:
        images = len(batch.images)
        step = self._engine.share(images)
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
        return runtimes.open_inductor(os.path.join(folder, "model.pt2"), threads)
    engine = os.path.join(folder, "model.onnx")
    try:
        with open(os.path.join(folder, "contract.json")) as file:
            contract = json.load(file)
    except OSError:  # Triton serves models without one too
        contract = {}
    if contract.get("runtime") == "openvino":
        if importlib.util.find_spec("openvino"):
            return runtimes.open_openvino(engine, contract["precision"], threads)
        pb_utils.Logger.log_warn(f"{engine} is fastest in OpenVINO, which is not installed: onnxruntime runs it")
    return runtimes.open_onnxruntime(engine, threads)


def _cores_are_free(threads: int) -> bool:
    """Whether half of the engine's threads, which may be fewer than the cores, have one; asked twice, for those that
    brought the images go at once.
    """
    most = max(len(os.sched_getaffinity(0)), threads) - threads / 2
    if _others_running() < most:
        return True
    time.sleep(50e-6)
    return _others_running() < most


def _others_running() -> int:
    """Threads of this machine that run or want to, without the calling one."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[0]) - 1
